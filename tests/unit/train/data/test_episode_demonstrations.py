"""The oracle's episodes are taught with the ids of rollouts, each action once, and as often wrong as the task asks."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from heliostat.config import EnvironmentSection, Recipe, TaskSection
from heliostat.models import LoadedModel, decode
from heliostat.tasks import Task, load_task
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.environments.contract import Environment, Step
from heliostat.tasks.environments.pool import EnvironmentPool
from heliostat.tasks.environments.worlds import row_of, seed_of
from heliostat.tasks.task import Slips
from heliostat.train.data.demonstrations import Demonstrations
from heliostat.train.data.episode_demonstrations import EpisodeDemonstrations
from heliostat.train.episodes import Environments, EpisodeDialogue
from heliostat.train.logprobs.packing import Row
from heliostat.train.logprobs.policy import Policy
from heliostat.train.model_bundle import ModelBundle
from heliostat.types import Problem

LOOKUP = "heliostat.tasks.environments.shipped.lookup:Lookup"
NUM_STEPS = 10
NO_SLIPS = Slips()
ENDLESS = {"name": f"{__name__}:Endless", "max_turns": 400, "max_tokens": 9999}

pytestmark = pytest.mark.slow  # real environment processes


class Endless(Environment):
    """Begins with an observation, and never ends."""

    def reset(self, problem: Any, seed: int) -> str:
        return f"room {seed}"

    def step(self, action: str) -> Step:
        return Step("on")

    def oracle(self) -> str:
        return "go"


class Mute(Environment):
    """Nobody knows a right action."""

    def reset(self, problem: Any, seed: int) -> str:
        return "room"


@pytest.fixture
def played(nano: LoadedModel) -> Iterator[Any]:
    """A maker of demonstrations in an environment, with its task."""
    pools: list[EnvironmentPool] = []

    def make(name: str = LOOKUP, slips: Slips = NO_SLIPS, **keys: Any) -> tuple[EpisodeDemonstrations, Task]:
        section = EnvironmentSection(name=name, num_workers=1, timeout_s=60.0, **keys)
        task = load_task(TaskSection(name="environment", num_train=40, num_heldout=1), 0, section)
        task = replace(task, slips=slips)
        recipe = Recipe(environment=section)
        bundle = ModelBundle(nano, SimpleNamespace(), recipe, torch.float32)
        pools.append(EnvironmentPool(environment_of(section)).__enter__())
        own = Demonstrations(nano, recipe.model, {task.name: task}, NUM_STEPS, seed=0)
        return EpisodeDemonstrations(own, Environments(pool=pools[-1], bundle=bundle, note=str)), task

    yield make
    for pool in pools:
        pool.__exit__()


def text_of(loaded: LoadedModel, ids: Any) -> str:
    return loaded.tokenizer.decode(list(ids))


def actions(loaded: LoadedModel, row: Row) -> list[str]:
    return [decode(loaded, row.completion.token_ids[start:end]) for start, end in row.completion.spans]


def reward(made: EpisodeDemonstrations, row: Row) -> float:
    problem = row.prompt.problem
    episode = made.environments.pool.open(row_of(problem), seed_of(problem))
    steps = [episode.step(action).result() for action in actions(made.own.loaded, row)]
    episode.close()
    assert steps[-1].done
    return sum(step.reward or 0.0 for step in steps)


def test_rows_are_the_oracles_episodes_and_only_actions_are_scored(played, nano) -> None:
    made, task = played(num_hops=2)
    for row in made.rows(0, task.train[:5]):
        keys = row.prompt.problem.prompt.split()
        first, second, last = actions(nano, row)
        value = last.removeprefix("say ")
        assert (first, value) == (f"get {keys[1]}", row.prompt.problem.answer)
        hop = second.removeprefix("get ")
        whole = text_of(nano, (*row.prompt.context_ids, *row.completion.token_ids))
        assert whole == (
            f"<|bos|>key {keys[1]} twice<|sep|>{first}<|eos|>{hop}<|sep|>{second}<|eos|>{value}<|sep|>{last}<|eos|>"
        )
        assert row.num_tokens == sum(end - start for start, end in row.completion.spans) < row.length
        assert reward(made, row) == 1.0


def test_the_ids_are_those_that_a_rollout_has(played) -> None:
    made, task = played(num_hops=2)
    [row] = made.rows(0, task.train[:1])
    problem = row.prompt.problem
    episode = made.environments.pool.open(row_of(problem), seed_of(problem))
    form = made.environments.format_of(problem, episode)
    asked = form.with_observation(problem, episode.first.result())
    assert made.environments.bundle.prompt(asked).token_ids == row.prompt.token_ids
    dialogue, spans = EpisodeDialogue(episode, made.environments, form), row.completion.spans
    ids = row.completion.token_ids
    for (start, end), (following, _) in zip(spans, [*spans[1:], (len(ids), 0)], strict=True):
        assert dialogue.reply(ids[start:end], room=100).result().token_ids == ids[end:following]
    dialogue.end()


def test_pairs_of_turns_have_the_loss_of_the_row(played, nano) -> None:
    made, task = played(num_hops=2)
    [episode] = made.play(task.train[:1])
    row, policy = episode.row(), Policy(nano, 1.0, shared_prompt=False)
    pairs = []
    for prompt, ids in episode.taught():
        logp = torch.zeros(len(ids)).numpy()
        completion = replace(row.completion, token_ids=ids, turns=(), logp_gen=logp, entropy=logp)
        pairs.append(replace(row, prompt=prompt, completion=completion))
    apart = torch.cat([policy.log_probs([pair]) for pair in pairs])
    torch.testing.assert_close(policy.log_probs([row]), apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_as_many_episodes_end_wrongly_as_asked(share: float, played) -> None:
    made, task = played(slips=Slips(share, after=0.2))
    assert all(reward(made, row) == 1.0 for row in made.rows(1, task.train))
    rows = [row for step in range(2, 8) for row in made.rows(step, task.train)]
    wrong = [reward(made, row) != 1.0 for row in rows]
    assert abs(sum(wrong) / len(rows) - share) < 0.1
    lengths = {len(row.completion.turns) for row, is_wrong in zip(rows, wrong, strict=True) if is_wrong}
    assert lengths == ({1, 2} if share else set())  # with the call, and without


def test_rows_are_a_function_of_the_step(played) -> None:
    first, second = (played(slips=Slips(0.5)) for _ in range(2))
    ids = [
        [row.completion.token_ids for row in made.rows(step, task.train[:9])]
        for made, task in (first, second)
        for step in (3, 4)
    ]
    assert ids[0] == ids[2]
    assert ids[1] == ids[3]
    assert ids[0] != ids[1]


def test_each_problem_is_played_once(played) -> None:
    made, task = played()
    made.rows(0, [*task.train[:3], task.train[0]])
    made.environments.pool.__exit__()  # whoever is asked again now is not there
    assert len(made.rows(1, task.train[:3])) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_turns": 1}, r"problem 'seed-\d+': the oracle's episode is not over after environment.max_turns = 1"),
        ({"max_tokens_per_turn": 2}, r"a turn of \d tokens \('get \d\d'\), and environment.max_tokens_per_turn is 2"),
        ({"max_tokens": 8}, r"has more than environment.max_tokens = 8 tokens"),
        (ENDLESS, r"tokens after a prompt of \d+, but the context"),
        ({"name": f"{__name__}:Mute"}, r"oracle.*, so there is no episode to imitate"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_said(keys: dict[str, Any], message: str, played) -> None:
    made, task = played(**keys)
    with pytest.raises(ValueError, match=message):
        made.rows(0, task.train[:2])


def test_a_problem_with_its_own_solution_is_taught_that(played, nano) -> None:
    made, task = played(f"{__name__}:Endless")
    solved = Problem("a", task.name, "Q", columns={"seed": 7}, solution="done")
    [row] = made.rows(0, [solved])
    assert text_of(nano, (*row.prompt.token_ids, *row.completion.token_ids)) == "<|bos|>Q\nroom 7<|sep|>done<|eos|>"
