"""Statistics of own text: the loss against exact gradients, and what each actuator turns."""

import numpy as np
import pytest
import torch

from heliostat.config import ConfigError, FeedbackSection, build_recipe
from heliostat.rollout import DecodeLimits, TorchEngine
from heliostat.train.logprobs.policy import Policy
from heliostat.train.sft.feedback import LEAST_LR, LEAST_TEMPERATURE, STATISTICS, Feedback, statistic_loss
from heliostat.types import Completion, Problem, StopReason
from tests.support.nano import make_prompts

VALUES = torch.tensor([0.0, 1.0, 3.0, 0.5])
TARGET = 0.4


def draws(logits, num, seed=0):
    return torch.multinomial(logits.softmax(0), num, replacement=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("direct", [False, True])
def test_its_gradient_is_that_of_the_squared_distance_from_the_target(direct):
    """On four texts that can be enumerated; ``direct``: the statistic is -log p itself."""
    logits = torch.tensor([0.3, -0.2, 0.1, 0.5], requires_grad=True)

    def statistics(logp):
        return -logp if direct else VALUES

    logp = logits.log_softmax(0)
    exact = ((logp.exp() * statistics(logp)).sum() - TARGET) ** 2
    (expected,) = torch.autograd.grad(exact, logits)
    logp = logits.log_softmax(0)
    sampled = draws(logits.detach(), 200_000)
    loss = statistic_loss(logp[sampled], statistics(logp)[sampled], TARGET)
    (measured,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(measured, expected, atol=0.02 * float(expected.abs().max()) + 5e-3)
    assert float(expected.abs().max()) > 0.1


def test_at_its_target_and_among_equals_nothing_is_pushed():
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    statistic_loss(logp, torch.tensor([0.2, 0.4, 0.6]), 0.4).backward()
    assert float(logp.grad.abs().max()) < 1e-6
    logp.grad = None
    statistic_loss(logp, torch.full((3,), 0.7), 0.4).backward()
    assert float(logp.grad.abs().max()) < 1e-6


def test_one_text_cannot_be_compared():
    with pytest.raises(ValueError, match="at least 2"):
        statistic_loss(torch.zeros(1), torch.zeros(1), 0.0)


@pytest.mark.parametrize(("name", "value"), [("entropy", 0.25), ("unrepeated", 0.5), ("distinct", 0.4)])
def test_statistics_by_hand(name, value):
    tokens = (1, 2, 1, 2, 1)  # 4-grams 1212 and 2121: make one of them repeat by an own example below
    entropy = np.asarray([0.0, 0.5, 0.25, 0.25, 0.25], dtype=np.float32)
    if name == "unrepeated":
        tokens, entropy = (1, 1, 1, 1, 1), entropy
    completion = Completion(tokens, np.zeros(5, np.float32), entropy, StopReason.EOS, "")
    assert STATISTICS[name](completion) == pytest.approx(value)


def feedback(nano, **settings):
    section = FeedbackSection(**{"statistic": "entropy", "every": 2, "num_texts": 4, **settings})
    prompts = {prompt.problem.problem_id: prompt for prompt in make_prompts(nano, 4)}
    engine = TorchEngine(nano, DecodeLimits(6))
    extra = [Problem(f"x{i}", "extra", "8 =") for i in range(3)]
    return Feedback(section, engine, Policy(nano, 1.0, False), lambda p: prompts[p.problem_id], 0, extra), [
        prompt.problem for prompt in prompts.values()
    ]


@pytest.mark.slow
def test_it_looks_when_it_is_time_and_is_held_where_it_was_first(nano):
    held, problems = feedback(nano, start=3, actuator="lr")
    looks = [held.measure(index, problems) for index in range(8)]
    assert [bool(look) for look in looks] == [False, False, False, True, False, True, False, True]
    assert held.target == looks[3]["feedback/statistic"] == looks[7]["feedback/target"]
    assert feedback(nano, statistic="none")[0].measure(0, problems) == {}


@pytest.mark.slow
@pytest.mark.parametrize("actuator", ["lr", "temperature", "mix"])
def test_below_its_target_a_controller_turns_its_setting(nano, actuator):
    held, problems = feedback(nano, target=50.0, actuator=actuator, every=1)
    assert (held.lr_scale, held.policy.temperature, held.mixed(0, problems)) == (1.0, 1.0, problems)
    outputs = [held.measure(index, problems)["feedback/output"] for index in range(12)]
    assert outputs[0] == pytest.approx(0.1)
    assert outputs[-1] == 1.0 - 1e-12 or outputs[-1] > 0.5
    full = outputs[-1]
    assert held.lr_scale == pytest.approx(1 - (1 - LEAST_LR) * full if actuator == "lr" else 1.0)
    assert held.policy.temperature == pytest.approx(
        1 - (1 - LEAST_TEMPERATURE) * full if actuator == "temperature" else 1.0
    )
    num = sum(problem.task == "extra" for problem in held.mixed(0, problems))
    assert num == (round(full * len(problems)) if actuator == "mix" else 0)
    again, _ = feedback(nano, actuator=actuator, every=1)
    again.load_state_dict(held.state_dict())
    assert (again.lr_scale, again.policy.temperature, again.target) == (held.lr_scale, held.policy.temperature, 50.0)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["entropy", "distinct"])
def test_the_added_loss_moves_own_text_towards_its_target(nano, statistic):
    """A hundred steps on nothing else, from either side."""
    for target in (0.05, 0.9):
        torch.manual_seed(0)
        held, problems = feedback(nano, statistic=statistic, target=target, every=1, num_texts=32, weight=1.0)
        start = {name: value.clone() for name, value in nano.model.state_dict().items()}
        optimizer = torch.optim.Adam(nano.model.parameters(), lr=3e-3)
        gaps = []
        for index in range(60):
            gaps.append(abs(held.measure(index, problems)["feedback/statistic"] - target))
            optimizer.zero_grad()
            held.loss().backward()
            optimizer.step()
        nano.model.load_state_dict(start)
        assert np.mean(gaps[-10:]) < 0.6 * gaps[0] or np.mean(gaps[-10:]) < 0.1, (statistic, target, gaps[::10])


def test_a_mix_needs_something_to_mix_in():
    with pytest.raises(ConfigError, match="needs a second"):
        build_recipe({}, {"feedback.statistic": "entropy", "feedback.actuator": "mix"})
