"""Recorded rows give the layers' own gradients; factors and means are those of per-sample quantities."""

import pytest
import torch

from heliostat.curvature import FactorSums, MeanSums, Recorder, covered_layers, per_sample_scores


def net():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3, bias=False)]
    return torch.nn.Sequential(*layers).double()


class Gradients:
    """A statistic whose answer autograd knows: the matrix gradient."""

    def __init__(self):
        self.found = {}

    def add(self, layer, inputs, output_grads):
        self.found[layer] = self.found.get(layer, 0) + output_grads.T @ inputs

    def clear(self):
        self.found = {}


def loss_of(model, inputs, labels, reduction="mean"):
    return torch.nn.functional.cross_entropy(model(inputs), labels, reduction=reduction)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (7,), generator=generator)


def test_rows_add_up_to_the_gradient_with_the_bias_as_last_column(batch):
    model, statistic = net(), Gradients()
    recorder = Recorder(covered_layers(model), statistic)
    with recorder.recording():
        loss_of(model, *batch).backward()
    first = torch.cat([model[0].weight.grad, model[0].bias.grad[:, None]], 1)
    torch.testing.assert_close(statistic.found["0"], first)
    torch.testing.assert_close(statistic.found["2"], model[2].weight.grad)


def test_recording_ends_gradients_return_and_hooks_come_off(batch):
    model, statistic = net(), Gradients()
    recorder = Recorder(covered_layers(model), statistic)
    loss_of(model, *batch).backward()
    assert statistic.found == {}
    before = [p.grad for p in model.parameters()]
    with recorder.recording(list(model.parameters())):
        loss_of(model, *batch, reduction="sum").backward()
    assert all(p.grad is b for p, b in zip(model.parameters(), before, strict=True))
    assert set(statistic.found) == {"0", "2"}
    recorder.close()
    assert not model[0]._forward_hooks


def test_covered_are_trainable_untied_linear_layers_up_to_a_size():
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(9, 4),
            "a": torch.nn.Linear(4, 4),
            "frozen": torch.nn.Linear(4, 4),
            "wide": torch.nn.Linear(4, 64),
            "norm": torch.nn.LayerNorm(4),
            "head": torch.nn.Linear(4, 9, bias=False),
        }
    )
    model["head"].weight = model["embedding"].weight
    model["frozen"].weight.requires_grad_(False)
    assert list(covered_layers(model)) == ["a", "wide"]
    assert list(covered_layers(model, max_size=32)) == ["a"]
    assert list(covered_layers(model, max_size=4)) == [], "the bias counts as an input"


@pytest.mark.parametrize("mean_loss", [True, False])
def test_factors_are_second_moments_of_per_sample_gradients(batch, mean_loss):
    model, sums = net(), FactorSums(of_mean_loss=mean_loss)
    recorder = Recorder(covered_layers(model), sums)
    with recorder.recording():
        loss_of(model, *batch, reduction="mean" if mean_loss else "sum").backward()
    factors = sums.take()["0"]
    rows = torch.cat([batch[0], torch.ones(7, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(factors.inputs, rows.T @ rows / 7)
    each = per_sample_scores(model, *batch)["0.bias"]  # the gradient of a bias is the output gradient itself
    torch.testing.assert_close(factors.outputs, each.T @ each / 7)
    assert sums.take() == {}


def test_one_row_makes_the_kronecker_product_the_fisher_block_of_that_row(batch):
    model, sums = net(), FactorSums()
    recorder = Recorder(covered_layers(model), sums)
    with recorder.recording():
        loss_of(model, batch[0][:1], batch[1][:1], reduction="sum").backward()
    factors = sums.take()["2"]
    u = per_sample_scores(model, batch[0][:1], batch[1][:1])["2.weight"][0].T.reshape(-1)  # column-major
    torch.testing.assert_close(torch.kron(factors.inputs, factors.outputs), torch.outer(u, u))


def test_micro_batches_and_repeated_use_add_up(batch):
    model, whole, parts = net(), FactorSums(), FactorSums()
    recorder = Recorder(covered_layers(model), whole)
    with recorder.recording():
        loss_of(model, *batch, reduction="sum").backward()
    recorder.close()
    recorder = Recorder(covered_layers(model), parts)
    with recorder.recording():
        for cut in (slice(0, 3), slice(3, 7)):
            loss_of(model, batch[0][cut], batch[1][cut], reduction="sum").backward()
    one, other = whole.take(), parts.take()
    for name in one:
        torch.testing.assert_close(one[name].inputs, other[name].inputs)
        torch.testing.assert_close(one[name].outputs, other[name].outputs)


def test_means_are_the_mean_input_and_the_bias_gradient(batch):
    model, sums = net(), MeanSums()
    recorder = Recorder(covered_layers(model), sums)
    with recorder.recording():
        loss_of(model, *batch).backward()
    means = sums.take()["0"]
    torch.testing.assert_close(means.inputs[:-1], batch[0].mean(0))
    torch.testing.assert_close(means.outputs, model[0].bias.grad)


def test_padding_can_be_left_out(batch):
    model, with_padding, without = net(), FactorSums(), FactorSums()
    padded = torch.cat([batch[0], torch.full((3, 5), 9.0, dtype=torch.float64)])
    recorder = Recorder(covered_layers(model), with_padding, skip_zero_gradients=True)
    with recorder.recording():
        torch.nn.functional.cross_entropy(model(padded)[:7], batch[1], reduction="sum").backward()
    recorder.close()
    recorder = Recorder(covered_layers(model), without)
    with recorder.recording():
        loss_of(model, *batch, reduction="sum").backward()
    torch.testing.assert_close(with_padding.take()["0"].inputs, without.take()["0"].inputs)
