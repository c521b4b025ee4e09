"""Every direction against the dense solve, the special cases the docstrings state, and what supplies the scores."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from heliostat.control.actor import Actor, Transitions, actions_for
from heliostat.control.directions import (
    DIRECTIONS,
    SCORES_AT_ONCE,
    AdamGradient,
    EvaLayers,
    Gradient,
    Rank1,
    SampleSpace,
    direction_of,
)
from heliostat.control.sample_space import gram, transformed_advantages
from heliostat.optim.scores.score_buffer import ScoreBuffer

SPACES = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}
NUM_ROWS = 64


class Doubled(FlattenExtractor):
    """Stable-Baselines3 turns observations into float32."""

    def forward(self, observations):
        return super().forward(observations).double()


def problem(kind="discrete", seed=0, shift=0.0):
    """An actor in float64 with weights of some size, and rows it drew itself."""
    torch.manual_seed(seed)
    space = SPACES[kind]
    policy = ActorCriticPolicy(
        spaces.Box(-3.0, 3.0, (4,), np.float64), space, lambda _: 1e-3, {"pi": [6, 5], "vf": [6]},
        ortho_init=False, share_features_extractor=False,
        features_extractor_class=Doubled,
    ).double()  # fmt: skip
    observations = torch.randn(NUM_ROWS, 4, dtype=torch.float64)
    with torch.no_grad():
        actions = policy.get_distribution(observations).sample()
    advantages = torch.randn(NUM_ROWS, dtype=torch.float64) + shift
    rows = Transitions(observations, actions_for(space, actions.double().reshape(NUM_ROWS, -1)), advantages)
    return Actor(policy), rows


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def dense_scores(actor, rows):
    """``u_i`` by one backward pass each: [row, parameter]."""
    each = actor.log_prob(rows)
    return torch.stack([flat(torch.autograd.grad(one, actor.parameters, retain_graph=True)) for one in each])


def gradient(actor, rows):
    for p in actor.parameters:
        p.grad = None
    (-(rows.advantages * actor.log_prob(rows)).mean()).backward(inputs=actor.parameters)
    return -flat([p.grad for p in actor.parameters])


def moved(direction, actor, rows, lr=0.5, seed=3):
    """``d``: what a step with learning rate ``lr`` did, over ``lr``."""
    gradient(actor, rows)
    optimizer, before = direction.build(actor, lr), flat(actor.parameters)
    direction.step(optimizer, actor, rows, np.random.default_rng(seed))
    return (flat(actor.parameters) - before) / lr


def natural(g, scores, damping):
    fisher = damping * torch.eye(len(g), dtype=torch.float64) + scores.T @ scores / len(scores)
    return torch.linalg.solve(fisher, g)


def chosen(m, seed=3):
    return (
        torch.as_tensor(np.random.default_rng(seed).choice(NUM_ROWS, m, replace=False)) if m < NUM_ROWS else slice(None)
    )


def close(a, b, tolerance=1e-10):
    assert float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("m", [1, 4, 64])
def test_the_direction_is_the_dense_solve(kind, m):
    actor, rows = problem(kind)
    g, scores = gradient(actor, rows), dense_scores(actor, rows)[chosen(m)]
    close(moved(Rank1(damping=0.3, num_scores=m), actor, rows), natural(g, scores, 0.3))


@pytest.mark.parametrize("m", [1, 16])
def test_blocks_are_solved_one_by_one(m):
    actor, rows = problem("box")
    g, scores = gradient(actor, rows), dense_scores(actor, rows)[chosen(m)]
    sizes = [p.numel() for p in actor.parameters]
    pieces = [natural(a, u, 0.3) for a, u in zip(g.split(sizes), scores.split(sizes, 1), strict=True)]
    close(moved(Rank1(damping=0.3, num_scores=m, block="param"), actor, rows), torch.cat(pieces))
    layers: dict[str, list[int]] = {}
    for index, name in enumerate(actor.names):
        layers.setdefault(name.rpartition(".")[0], []).append(index)
    gs, us = g.split(sizes), scores.split(sizes, 1)
    found = torch.split(moved(Rank1(damping=0.3, num_scores=m, block="layer"), *problem("box")), sizes)
    for members in layers.values():
        expected = natural(torch.cat([gs[i] for i in members]), torch.cat([us[i] for i in members], 1), 0.3)
        close(torch.cat([found[i] for i in members]), expected)


@pytest.mark.parametrize("direction", [Rank1(num_scores=1), Rank1(num_scores=3, u="mean_score")], ids=str)
def test_scores_from_the_kept_graph_are_those_of_a_pass_of_their_own(direction):
    actor, rows = problem()
    fresh = moved(direction, actor, rows)
    actor, rows = problem()
    gradient(actor, rows)
    optimizer, before = direction.build(actor, 0.5), flat(actor.parameters)
    direction.step(optimizer, actor, rows, np.random.default_rng(3), actor.log_prob(rows))
    close((flat(actor.parameters) - before) / 0.5, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("m", [1, SCORES_AT_ONCE])
def test_a_score_is_the_gradient_of_log_pi_and_knows_no_advantage(kind, m, monkeypatch):
    given, seen, take = [], [], ScoreBuffer.take_rows
    monkeypatch.setattr(ScoreBuffer, "take_rows", lambda *args: seen.append(take(*args)) or seen[-1])
    for scale in (1.0, 1000.0):
        actor, rows = problem(kind)
        rows = Transitions(rows.observations, rows.actions, scale * rows.advantages)
        gradient(actor, rows)
        rule = Rank1(num_scores=m)
        optimizer = rule.build(actor, 0.0)
        rule.step(optimizer, actor, rows, np.random.default_rng(3))
        given.append(torch.cat([seen[-1][1][p].flatten(1) for p in actor.parameters], 1))
        close(given[-1], dense_scores(actor, rows)[chosen(m)])
    assert torch.equal(given[0], given[1])


@pytest.mark.parametrize("kind", SPACES)
def test_all_scores_make_the_exact_natural_gradient_and_so_does_the_sample_space(kind):
    actor, rows = problem(kind)
    exact = natural(gradient(actor, rows), dense_scores(actor, rows), 0.05)
    close(moved(Rank1(damping=0.05, num_scores=10_000), actor, rows), exact)
    close(moved(SampleSpace(damping=0.05), *problem(kind)), exact)


def test_transformed_advantages_give_a_policy_gradient():
    actor, rows = problem()
    exact = natural(gradient(actor, rows), dense_scores(actor, rows), 0.05)
    products = gram({p: u.double() for p, u in actor.scores(rows).items()})
    close(
        gradient(
            actor, Transitions(rows.observations, rows.actions, transformed_advantages(products, rows.advantages, 0.05))
        ),
        exact,
    )


def test_transformed_advantages_of_orthogonal_scores():
    found = transformed_advantages(torch.diag(torch.tensor([2.0, 4.0])), torch.tensor([1.0, -3.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([1 / 1.5, -3 / 2.5], dtype=torch.float64))


@pytest.mark.parametrize("direction", [Rank1(damping=1e9), Rank1(damping=1e9, num_scores=16), SampleSpace(damping=1e9)])
def test_huge_damping_is_the_gradient_over_it(direction):
    actor, rows = problem()
    g = gradient(actor, rows)
    close(1e9 * moved(direction, actor, rows, lr=1e9), g, 1e-6)


def test_evas_huge_damping_is_the_gradient_over_it():
    actor, rows = problem()
    optimizer = (rule := EvaLayers(damping=1e9)).build(actor, 1e9)
    g, before = gradient(actor, rows), flat(actor.parameters)
    rule.step(optimizer, actor, rows, np.random.default_rng(0))
    close(flat(actor.parameters) - before, g, 1e-6)


def test_the_gradient_as_score_is_the_normalised_gradient():
    actor, rows = problem()
    g = gradient(actor, rows)
    close(moved(Rank1(u="grad", damping=0.2), actor, rows), g / (0.2 + g @ g))


def test_the_mean_score_is_one_score():
    actor, rows = problem()
    g, mean = gradient(actor, rows), dense_scores(actor, rows)[chosen(8)].mean(0)
    close(moved(Rank1(u="mean_score", num_scores=8, damping=0.2), actor, rows), natural(g, mean[None], 0.2))


@pytest.mark.parametrize(
    "direction", [Rank1(damping=0.1, num_scores=4, max_kl=1e-3), SampleSpace(max_kl=1e-3)], ids=str
)
def test_max_kl_with_a_large_learning_rate_sets_the_step(direction):
    actor, rows = problem()
    free = type(direction)(**{**vars(direction), "max_kl": None}) if hasattr(direction, "__dict__") else direction
    d, g = moved(free, *problem()), gradient(actor, rows)
    step = 1e4 * moved(direction, actor, rows, lr=1e4)
    close(step, (2e-3 / (g @ d)).sqrt() * d, 1e-8)


def test_averaged_scores_keep_a_mean_and_forget_by_their_weight():
    actor, rows = problem()
    rule = Rank1(num_scores=1, ema=0.75, damping=0.3)
    optimizer, mean = rule.build(actor, 0.1), None
    for seed in range(3):
        g, u = gradient(actor, rows), dense_scores(actor, rows)[chosen(1, seed)][0]
        mean = u if mean is None else 0.75 * mean + 0.25 * u
        before = flat(actor.parameters)
        rule.step(optimizer, actor, rows, np.random.default_rng(seed))
        close(flat(actor.parameters) - before, 0.1 * natural(g, mean[None], 0.3))


def test_momentum_is_of_the_natural_gradient():
    actor, rows = problem()
    rule = SampleSpace(momentum=0.5)
    optimizer, buffer = rule.build(actor, 0.1), 0.0
    for _ in range(3):
        d = natural(gradient(actor, rows), dense_scores(actor, rows), 0.1)
        buffer, before = 0.5 * buffer + d, flat(actor.parameters)
        rule.step(optimizer, actor, rows, np.random.default_rng(0))
        close(flat(actor.parameters) - before, 0.1 * buffer)


@pytest.mark.parametrize("direction", [Rank1(), Rank1(num_scores=16), SampleSpace()], ids=str)
def test_a_score_that_is_not_finite_is_a_counted_step_left_out(direction):
    actor, rows = problem("box")
    gradient(actor, rows)
    optimizer, before = direction.build(actor, 0.1), flat(actor.parameters)
    with torch.no_grad():
        actor.policy.log_std.fill_(-400.0)  # 1 / sigma^2 overflows
    before = flat(actor.parameters)
    with pytest.warns(UserWarning, match="the step is skipped"):
        direction.step(optimizer, actor, rows, np.random.default_rng(0))
    assert torch.equal(flat(actor.parameters), before)
    assert optimizer.num_skipped == 1


def test_names_and_settings_are_checked():
    assert direction_of("adam") == AdamGradient()
    assert direction_of(Gradient(momentum=0.9)).momentum == 0.9
    assert set(DIRECTIONS) == {"rank1", "eva", "sample-space", "sgd", "adam"}
    with pytest.raises(ValueError, match=r"unknown direction 'rank-1' \(did you mean 'rank1'"):
        direction_of("rank-1")
    for thing in (Rank1, None, 3):
        with pytest.raises(ValueError, match="a direction with its settings"):
            direction_of(thing)
    with pytest.raises(ValueError, match="u must be one of"):
        Rank1(u="scores")
    with pytest.raises(ValueError, match="num_scores"):
        Rank1(num_scores=0)
    with pytest.raises(ValueError, match="damping"):
        SampleSpace(damping=0.0).build(problem()[0], 0.1)


def test_the_actors_parameters_are_found_by_what_they_do():
    actor, _ = problem("box")
    assert [name for name in actor.names if "value" in name] == []
    assert "log_std" in actor.names
    assert len(actor.names) + len(actor.critic_parameters) == len(list(actor.policy.parameters()))
    stray = dict(actor.layers().named_parameters())
    assert {id(p) for p in stray.values()} == {id(p) for p in actor.parameters}


def test_shared_networks_are_refused():
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = ActorCriticCnnPolicy(image, gymnasium.spaces.Discrete(2), lambda _: 1e-3, share_features_extractor=True)
    with pytest.raises(ValueError, match="actor and critic share 'features_extractor"):
        Actor(policy)
