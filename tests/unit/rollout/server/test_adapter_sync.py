"""An adapter alone as the sync: what is sent, what is sampled, and what happens where a server cannot load it."""

import pytest
import torch

from heliostat.config import ConfigError, LoraSection, ModelSection, build_recipe
from heliostat.models import load_model, sampler_copy_of, snapshot_weights, with_weights
from heliostat.models.lora import add_adapters, perturbed_adapters
from heliostat.rollout import (
    DecodeLimits,
    ParityError,
    SampleRequest,
    SamplingSettings,
    Server,
    ServerEngine,
    ServerError,
    SGLang,
    Vllm,
)
from heliostat.train.checks.recipe import check_recipe
from tests.support.fake_server import FakeServer, FakeSGLang, serving
from tests.support.nano import NANO, make_prompts

pytestmark = pytest.mark.slow
KINDS = {"vllm": (FakeServer, Vllm), "sglang": (FakeSGLang, SGLang)}


def plain():
    return load_model(ModelSection(path="tiny", settings={**NANO, "init_std": 0.3}), 0)


@pytest.fixture
def adapted():
    loaded = plain()
    add_adapters(loaded.model, LoraSection(rank=2), seed=1)
    loaded.model.eval()
    return loaded


@pytest.fixture(params=KINDS)
def served(request, tmp_path, adapted):
    fake, dialect = KINDS[request.param]
    state = fake(plain())
    state.loaded.model.eval()
    with serving(state) as url:

        def make(parts="auto"):
            server = Server(url, timeout_s=20.0, num_retries=1, first_pause_s=0.01)
            return ServerEngine(
                adapted,
                DecodeLimits(6),
                server,
                dialect(),
                tmp_path / "sync",
                num_requests=2,
                max_gap=1e-3,
                parts=parts,
            )

        yield state, make


def sample(engine, temperature=0.7):
    settings = SamplingSettings(temperature=temperature)
    return engine.sample(SampleRequest(make_prompts(engine.loaded, 2), 3, settings, seed=3, policy_step=5))


def train(loaded):
    """A change as an optimizer makes it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_only_the_adapter_is_sent_and_the_one_before_goes(served, adapted, tmp_path):
    state, make = served
    base = {name: tensor.clone() for name, tensor in state.loaded.model.state_dict().items()}
    engine = make()
    sample(engine)
    train(adapted)
    sample(engine)
    assert state.num_reloads == 0
    assert all(tensor.equal(base[name]) for name, tensor in state.loaded.model.state_dict().items())
    assert len(state.loaded_adapters) == 3, "the rehearsal, the first sync and that of the trained adapter"
    assert len(set(state.loaded_adapters)) == 3
    assert list(state.adapters) == state.loaded_adapters[-1:]
    assert [path.name for path in (tmp_path / "sync").iterdir()] == state.loaded_adapters[-1:]


def test_the_model_is_sent_where_the_recipe_says_so(served, adapted):
    state, make = served
    train(adapted)
    sample(make("weights"))
    assert state.num_reloads == 2
    assert not state.loaded_adapters


def test_a_server_without_adapters_gets_the_model_with_one_sentence(served, adapted):
    state, make = served
    train(adapted)
    state.has_lora = False
    with pytest.warns(UserWarning, match="sends the whole model, since its adapter alone did not work.*--enable-lora"):
        sample(make())
    assert state.num_reloads == 2
    with pytest.raises(ServerError, match="--max-lora-rank"):
        sample(make("adapter"))


def test_a_server_that_ignores_an_adapter_is_found_by_the_rehearsal(served, adapted):
    state, make = served
    state.ignores_adapters = True
    with pytest.raises(ParityError, match="after a rehearsal with a changed adapter"):
        sample(make("adapter"))
    assert not state.adapters, "it is taken back"
    with pytest.warns(UserWarning, match="sends the whole model"):
        sample(make())


def test_another_base_model_is_found_by_the_rehearsal(served):
    state, make = served
    with torch.no_grad():
        for parameter in state.loaded.model.parameters():
            parameter.mul_(1.5)
    with pytest.raises(ParityError, match="after a rehearsal with a changed adapter"):
        sample(make("adapter"))


def test_a_server_that_lost_the_adapter_gets_it_again(served):
    state, make = served
    engine = make("adapter")
    sample(engine)
    state.adapters.clear()
    state.version = "default"
    sample(engine)
    assert len(state.loaded_adapters) == 4


def test_a_copy_of_the_model_has_its_own_adapter_there(served, adapted):
    state, make = served
    engine = make()
    twin, kept = sampler_copy_of(adapted), snapshot_weights(adapted)
    aside = engine.clone_for(twin)
    with with_weights(twin, kept):
        before = sample(aside)
    train(adapted)
    now = sample(engine)
    with with_weights(twin, kept):
        again = sample(aside)
    assert [c.token_ids for g in before for c in g.completions] == [c.token_ids for g in again for c in g.completions]
    assert [c.token_ids for g in before for c in g.completions] != [c.token_ids for g in now for c in g.completions]
    assert len(state.adapters) == 1


def test_the_rehearsal_leaves_the_adapter_bit_for_bit(served, adapted):
    _, make = served
    before = [parameter.detach().clone() for parameter in adapted.model.parameters()]
    sample(make("adapter"))
    assert all(torch.equal(a, b) for a, b in zip(before, adapted.model.parameters(), strict=True))
    with perturbed_adapters(adapted.model, seed=0):
        assert not all(torch.equal(a, b) for a, b in zip(before, adapted.model.parameters(), strict=True))


def test_a_recipe_without_adapters_cannot_send_one():
    rollout = {"engine": "vllm", "server_url": "http://host:1", "sync_dir": "s", "sync": "adapter"}
    with pytest.raises(ConfigError, match=r"rollout\.sync = 'adapter' is only used with lora\.rank"):
        check_recipe(build_recipe({"rollout": rollout}))
