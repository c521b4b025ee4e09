"""Layouts that do not give a model's own numbers are not used."""

import warnings

import numpy as np
import pytest
import torch

from heliostat.models import sampler_copy_of
from heliostat.models.head import Head
from heliostat.train.logprobs import layout_trial as exact_module
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.logprobs.layouts import Alone, Cached, Plain, Tree
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.logprobs.policy import Policy
from tests.support.model_families import load_small
from tests.support.nano import make_nano


def kinds(found):
    return [type(layout) for layout in found]


def exact_of(loaded):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exact_layouts(loaded)


def own_log_probs(loaded, rows):
    pieces = []
    for row in rows:
        ids = torch.tensor([[*row.prompt.context_ids, *row.completion.token_ids]])
        logp = torch.log_softmax(loaded.model(input_ids=ids, use_cache=False).logits.float(), -1)[0]
        pieces.append(logp[row.context_length - 1 : -1].gather(1, ids[0, row.context_length :, None])[:, 0])
    return torch.cat(pieces).detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mpt", "gpt_neo", "bloom", "xglm", "deepseek_v3", "rwkv", "gemma2", "stablelm"])
def test_training_scores_what_the_model_says(family, tmp_path):
    loaded = load_small(family, tmp_path)
    rows = exact_module.trial_rows(loaded)
    found = exact_of(loaded)
    for shared in (True, False):
        policy = Policy(loaded, 1.0, shared_prompt=shared)
        np.testing.assert_allclose(policy.log_probs(rows).detach().numpy(), own_log_probs(loaded, rows), atol=1e-4)
        assert policy.shared_prompt == (shared and bool(found.sharing))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_a_tree_whose_members_see_each_other_is_left_out(dtype, scale, monkeypatch):
    real = Head.hidden

    def past(head, attention_mask=None, **inputs):
        """The model's halves, but for trees: with the usual causal mask in place of theirs."""
        if (
            attention_mask is not None
            and attention_mask.ndim == 4
            and attention_mask.shape[2] == attention_mask.shape[3]
        ):
            attention_mask = torch.ones_like(attention_mask).tril()
        return real(head, attention_mask=attention_mask, **inputs)

    assert kinds(exact_of(make_nano(scale=scale)).sharing) == [Tree, Cached, Packed]
    loaded = make_nano(scale=scale)
    loaded.model.to(dtype)
    monkeypatch.setattr(Head, "hidden", past)
    found = exact_of(loaded)
    assert kinds(found.sharing) == [Cached, Packed]
    assert not found.faults
    assert kinds(Policy(loaded, 1.0, shared_prompt=True).layouts) == [Cached, Packed]
    assert kinds(Policy(loaded, 1.0, shared_prompt=True, gradient_checkpointing=True).layouts) == [Plain]


def test_a_model_that_its_neighbours_disturb_runs_row_by_row():
    loaded = make_nano()

    def disturbed(module, args, output):
        return output + 0.1 * (output - output[:1])  # of the first row's, as where experts have a capacity

    loaded.model.model.layers[0].register_forward_hook(disturbed)
    with pytest.warns(
        UserWarning, match=r"'tiny' is scored with one row at a time.*rows padded on the right: .* off by"
    ):
        found = exact_layouts(loaded)
    assert isinstance(found.single, Alone)
    rows = exact_module.trial_rows(loaded)
    policy = Policy(loaded, 1.0, shared_prompt=False)
    np.testing.assert_allclose(policy.log_probs(rows).detach().numpy(), own_log_probs(loaded, rows), atol=1e-5)


def test_a_model_is_tried_once_and_its_twin_not_at_all(monkeypatch):
    loaded = make_nano()
    found = exact_layouts(loaded)
    monkeypatch.setattr(exact_module, "reference_log_probs", lambda *_: pytest.fail("it is tried again"))
    assert exact_layouts(loaded) is found
    assert kinds(exact_layouts(sampler_copy_of(loaded)).sharing) == kinds(found.sharing)
