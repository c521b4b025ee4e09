"""A way of decoding is used only where it gives the model's own numbers, and the fastest such way is."""

import dataclasses
import warnings

import pytest
import torch

from heliostat.config import ConfigError, RolloutSection
from heliostat.models import LoadedModel, encode_problem
from heliostat.models.checks.reference_forward import comparison_mode, mixed_contexts, reach, unreached
from heliostat.rollout import DecodeLimits, PlainEngine, SampleRequest, SamplingSettings, TorchEngine, build_engine
from heliostat.rollout.in_process.columns import Columns
from heliostat.rollout.in_process.rows import PaddedRows, Rows
from heliostat.rollout.in_process.shared import SharedPrompts, SharedRows
from heliostat.types import Problem
from tests.support.model_families import load_small
from tests.support.nano import make_nano

NUM_TOKENS = 6
TEXTS = ("1 + 2 =", "10 + 25 - 3 + 4 - 100 + 77 =", "7 =", "what is 123 + 456 - 789 =", "5 - 4 =")

# Family -> the kind of rows it is decoded with; None: its own cache, or none.
FAMILIES = {
    "mpt": PaddedRows,  # ALiBi and a mask of its own
    "bloom": PaddedRows,
    "falcon": PaddedRows,
    "gpt_neo": PaddedRows,  # local attention, by columns
    "gptj": PaddedRows,
    "codegen": PaddedRows,
    "xglm": PaddedRows,
    "opt": SharedRows,  # positions with an offset
    "deepseek_v2": Rows,  # latent attention: values of another width than keys
    "deepseek_v3": Rows,
    "minicpm3": Rows,
    "mamba": None,
    "rwkv": None,
    "recurrent_gemma": None,
    "gemma2": None,  # sliding windows, capped logits
    "gemma3_text": None,
    "gpt_oss": None,  # sinks
    "qwen3_moe": SharedRows,
    "cohere": SharedRows,
    "phi": SharedRows,
    "stablelm": Rows,
    "granite": SharedRows,
    "roberta": None,  # positions that depend on the padding id
}


@torch.no_grad()
def own_continuation(loaded: LoadedModel, context: tuple[int, ...]) -> list[int]:
    """Greedy, alone, the whole text again for every token."""
    ids = list(context)
    for _ in range(NUM_TOKENS):
        ids.append(int(loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in loaded.eos_ids:
            break
    return ids[len(context) :]


def build(loaded: LoadedModel, **section):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_engine(loaded, DecodeLimits(NUM_TOKENS, max_rows=3), RolloutSection(**section))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_says_beside_others_what_it_says_alone(family, tmp_path):
    loaded = load_small(family, tmp_path)
    prompts = [encode_problem(loaded, Problem(str(i), "t", text), chat=False) for i, text in enumerate(TEXTS)]
    engine = build(loaded)
    groups = engine.sample(SampleRequest(prompts, 1, SamplingSettings(temperature=0), seed=0, policy_step=0))
    for group in groups:
        assert list(group.completions[0].token_ids) == own_continuation(loaded, group.prompt.context_ids)
    assert (engine.rows_kind if isinstance(engine, TorchEngine) else None) is FAMILIES[family]


def wrong(kind, name, function):
    return lambda patch: patch.setattr(kind, name, function)


def extend_counting_gaps(columns, real):
    before = torch.full(real.shape, columns.length)
    columns.held = torch.cat([columns.held, real], dim=1)
    columns.count = columns.count + real.sum(dim=1)
    return before


MISTAKES = {
    "padding is attended to": (
        wrong(Columns, "have_gaps", False),
        wrong(SharedPrompts, "have_gaps", False),
        wrong(Columns, "visible", lambda columns, num_new: torch.ones(*columns.held.shape, dtype=torch.bool)[:, None]),
    ),
    "positions count padding": (
        wrong(Columns, "extend", extend_counting_gaps),
        wrong(SharedPrompts, "row_lengths", property(lambda prompts: prompts.length + 0 * prompts.group)),
    ),
    "members of a group see another prompt": (
        wrong(
            SharedPrompts,
            "row_lengths",
            property(lambda prompts: prompts.length - prompts.start.flip(0)[prompts.group]),
        ),
    ),
}

SHARED_ONLY = ("members of a group see another prompt",)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_mask_or_position_is_found_even_in_a_random_model(mistake, dtype, scale, monkeypatch):
    """In bfloat16 as well, where the difference drowns in rounding: it is looked for in float32."""
    loaded = make_nano(scale=scale)
    loaded.model.to(dtype)
    before = build(loaded)
    assert before.way == "shared prompts and fused layers"
    for break_it in MISTAKES[mistake]:
        break_it(monkeypatch)
    monkeypatch.setattr("heliostat.rollout.in_process.ways.PaddedRows", Rows)  # its mask is another
    after = build(loaded)
    assert after.way != before.way
    assert isinstance(after, TorchEngine if mistake in SHARED_ONLY else PlainEngine)


def test_what_was_passed_over_and_why_is_said(monkeypatch):
    loaded = make_nano()
    monkeypatch.setattr(Columns, "extend", extend_counting_gaps)
    with pytest.warns(UserWarning, match=r"'tiny' is decoded with the model's own cache.*off by .* rounding explains"):
        engine = build_engine(loaded, DecodeLimits(4), RolloutSection(shared_prompt=False))
    assert engine.way == engine.clone_for(loaded).way == "the model's own cache, prompts of equal length together"


def test_without_a_right_cache_the_whole_text_runs_again():
    """A model whose memory is wrong, as some first releases' is."""
    loaded = make_nano()
    layer = loaded.model.model.layers[0]

    def forgetful(module, args, kwargs):
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        if cache is not None and cache.get_seq_length() > 0:
            return args, kwargs | {"position_embeddings": tuple(0.5 * each for each in kwargs["position_embeddings"])}
        return None

    layer.register_forward_pre_hook(forgetful, with_kwargs=True)
    engine = build(loaded, fused_layers=False)
    assert engine.way == "no cache, prompts of equal length together"


def test_a_model_that_never_says_the_same_twice_is_refused():
    loaded = make_nano()
    loaded.head.projection.register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    with pytest.raises(ConfigError, match=r"'tiny' cannot be sampled: .* does not say the same twice"):
        build(loaded)


def test_a_model_whose_answers_depend_on_what_follows_is_refused_as_such():
    """As where a text's length picks its positions: a change of a later token alone would not show it."""
    loaded = make_nano()

    def longer(module, args, output):
        output.logits = output.logits * (1 + output.logits.shape[1] / 9)

    loaded.model.register_forward_hook(longer)
    with pytest.raises(ConfigError, match=r"what it says of a text changes when the text goes on, and it is not a"):
        build(loaded)


def test_trials_leave_nothing_behind():
    loaded = make_nano()
    loaded.model.to(torch.bfloat16).train()
    tensors = [(each, each.data_ptr(), each.dtype) for each in loaded.model.parameters()]
    with comparison_mode(loaded):
        assert all(each.dtype == torch.float32 for each in loaded.model.parameters())
    engine = build(loaded)
    assert [(each, each.data_ptr(), each.dtype) for each in loaded.model.parameters()] == tensors
    assert loaded.model.training
    assert engine.counts.prefills == 0
    assert engine.loaded is loaded
    assert engine.builder.loaded is loaded


def test_windows_are_exceeded_where_that_is_cheap_and_distrusted_where_not(monkeypatch):
    loaded = make_nano(context_length=128)
    assert reach(loaded) is None
    assert not unreached(loaded)
    loaded.model.config.window_size = 40
    assert max(map(len, mixed_contexts(loaded))) == reach(loaded) == 43
    assert not unreached(loaded)
    monkeypatch.setattr("heliostat.models.checks.reference_forward.MAX_WINDOW_WORK", 10.0)
    assert reach(loaded) is None
    assert unreached(loaded)
    assert isinstance(build(loaded), PlainEngine)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep_window_size": 30}, 33),
        ({"sliding_window_size": 30}, 33),
        ({"local_attention": 30}, 33),
        ({"index_topk": 30, "layer_types": ["full_attention"]}, 33),
        ({"index_topk_blocks": 5, "index_block_size": 6}, 33),
        ({"sliding_window": 30, "layer_types": ["full_attention"]}, None),
        ({"max_window_layers": 30, "sliding_window_pattern": 30, "use_sliding_window": True}, None),
    ],
)
def test_whatever_a_long_text_is_seen_through_is_exceeded(settings, expected):
    loaded = make_nano(context_length=128)
    for name, value in settings.items():
        setattr(loaded.model.config, name, value)
    assert reach(loaded) == expected


@pytest.mark.slow
@pytest.mark.parametrize("context_length", [2, 6, 24])
def test_short_contexts_can_be_tried(context_length):
    loaded = make_nano(context_length=context_length)
    assert all(len(context) < context_length for context in mixed_contexts(loaded))
    assert build(loaded).way


def test_members_with_other_ends_share_the_model():
    loaded = make_nano()
    other = dataclasses.replace(loaded, eos_ids=frozenset({1}))
    assert other.memo is not loaded.memo
