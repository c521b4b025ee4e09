"""Fisher products against the dense matrix, and sampled labels against their expectation."""

import torch
from dense_fisher import dense_fisher

from heliostat.curvature import (
    fisher_product,
    per_sample_scores,
    sampled_log_likelihood,
)


def setting():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    inputs = torch.randn(6, 4, dtype=torch.float64)
    vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return model, inputs, vector


def flat(named):
    return torch.cat([tensor.reshape(-1) for tensor in named.values()])


def test_the_product_is_the_dense_matrix_times_the_vector():
    model, inputs, vector = setting()
    dense = dense_fisher(model, inputs)
    torch.testing.assert_close(flat(fisher_product(model, inputs, vector)), dense @ flat(vector))
    torch.testing.assert_close(dense, dense.T)


def test_the_dense_matrix_is_the_expectation_of_score_products_over_all_labels():
    model, inputs, _ = setting()
    p = torch.softmax(model(inputs), -1).detach()
    total = 0
    for label in range(3):
        scores = per_sample_scores(model, inputs, torch.full((6,), label))
        rows = torch.cat([scores[name].flatten(1) for name, _ in model.named_parameters()], 1)
        total = total + rows.T @ (p[:, label, None] * rows) / 6
    torch.testing.assert_close(dense_fisher(model, inputs), total)


def test_scores_average_to_the_gradient():
    model, inputs, _ = setting()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    scores = per_sample_scores(model, inputs, labels)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(scores[name].mean(0), -p.grad)


def test_frozen_parameters_have_no_score():
    model, inputs, _ = setting()
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in per_sample_scores(model, inputs, torch.zeros(6, dtype=torch.long))


def test_labels_are_drawn_from_the_model():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]])).repeat(20_000, 1).requires_grad_()
    sampled_log_likelihood(logits, torch.Generator().manual_seed(0)).backward()
    # The gradient of log p(y) is onehot(y) - p: its mean is 0 under the model, its entries reveal the labels.
    frequency = (logits.grad + torch.tensor([0.7, 0.2, 0.1])).mean(0)
    torch.testing.assert_close(frequency, torch.tensor([0.7, 0.2, 0.1]), atol=0.012, rtol=0)
