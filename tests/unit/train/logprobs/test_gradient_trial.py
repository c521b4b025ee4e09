"""A layout that loses a part of the gradient is not used, and a model without a gradient is refused before training."""

import warnings

import pytest
import torch

from heliostat.config import ConfigError, LoraSection, Recipe
from heliostat.models import sampler_copy_of
from heliostat.models.lora import add_adapters
from heliostat.train.distributed.ranks import Runtime
from heliostat.train.logprobs import layout_trial as exact_module
from heliostat.train.logprobs import layouts
from heliostat.train.logprobs.gradient_trial import GradientTrial
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.logprobs.layouts import Alone, Cached, Plain, Tree
from heliostat.train.logprobs.packed_layout import Packed
from heliostat.train.model_bundle import set_up_model
from tests.support.model_families import load_small, small
from tests.support.nano import make_nano


def kinds(found):
    return [type(layout) for layout in found]


def test_all_layouts_have_the_models_own_gradient():
    loaded = make_nano()
    trial = GradientTrial(loaded, exact_module.trial_rows(loaded), 1.0)
    truth = trial.gradient(Alone())
    for layout in (Plain(), Tree(), Cached(), Packed()):
        torch.testing.assert_close(trial.gradient(layout), truth, rtol=1e-3, atol=1e-5)
        assert trial.fault(layout) == ""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_cache_that_forgets_where_its_keys_came_from_is_left_out(rank, monkeypatch):
    """The numbers are right; the prompt's part of the gradient is lost."""
    whole = layouts.key_values
    monkeypatch.setattr(layouts, "key_values", lambda layer: [each.detach() for each in whole(layer)])
    loaded = make_nano()
    if rank:
        add_adapters(loaded.model, LoraSection(rank=rank), seed=0)
    found = exact_layouts(loaded)
    assert kinds(found.sharing) == [Tree, Packed]
    assert not found.untrainable


def test_a_layer_that_blocks_the_gradient_is_said():
    loaded = make_nano()
    loaded.model.model.layers[1].register_forward_hook(lambda module, args, output: output.detach())
    assert exact_layouts(loaded).untrainable == "no gradient reaches its tokens"


def test_a_gradient_that_is_no_number_is_said():
    loaded = make_nano()
    loaded.model.model.layers[1].register_forward_hook(
        lambda module, args, output: output + 0 * (output.detach() - output).abs().sqrt()
    )
    assert exact_layouts(loaded).untrainable == "its gradient is not finite"


def test_a_frozen_model_needs_no_gradient():
    loaded = make_nano()
    loaded.model.requires_grad_(False)
    loaded.model.model.layers[1].register_forward_hook(lambda module, args, output: output.detach())
    assert not exact_layouts(loaded).untrainable
    assert not exact_layouts(sampler_copy_of(loaded)).untrainable


def test_a_model_that_wants_its_training_mode_is_refused_at_load(tmp_path):
    base = small.write_small("reformer", tmp_path / "base")
    recipe = Recipe.model_validate({"model": {"path": str(base), "dtype": "float32"}, "task": [{"name": "countdown"}]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match=r"can be sampled from and not trained: AssertionError: If you want to"):
            set_up_model(recipe, Runtime(torch.device("cpu")))


def test_trials_leave_nothing_behind(tmp_path):
    loaded = load_small("mpt", tmp_path)
    exact_layouts(loaded)
    embedding = loaded.model.get_input_embeddings()
    assert not embedding._forward_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in loaded.model.parameters())
