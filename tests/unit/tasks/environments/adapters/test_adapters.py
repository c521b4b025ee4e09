"""Episodes of classes that were written for other packages, unchanged."""

import pytest

from heliostat.tasks.environments.building import build
from heliostat.tasks.environments.contract import EnvironmentSpec

MODULE = "tests.support.environment_classes"
ROW = {"prompt": "Go.", "answer": "42", "level": 3}


def make(name, tools=(), **settings):
    return build(EnvironmentSpec(f"{MODULE}:{name}", tuple(f"{MODULE}:{tool}" for tool in tools), settings))()


def contents(step):
    return [message["content"] for message in step.observation]


# -- TRL


@pytest.mark.parametrize("name", ["TRLSafe", "TRLSafeWithMore", "AsyncTRLSafe"])
def test_trl(name):
    environment = make(name)
    assert environment.reset(ROW, 0) == "The code has 2 digits."
    assert [tool["function"]["name"] for tool in environment.tools()] == ["digit", "enter"]
    first = environment.step("digit(0)\ndigit(1)\ndigit(2)")
    assert contents(first) == ["4", "2", "error: IndexError: string index out of range"]
    assert (first.reward, first.done, first.info["errors"]) == (0.0, False, 1)
    assert contents(environment.step('enter("42")')) == ["open"]
    last = environment.step("It is open.")
    assert (last.reward, last.done) == (0.0, True)


def test_trl_rewards_sum_to_the_classs_reward_wherever_the_episode_ends():
    environment = make("TRLSafe")
    for actions, total in ((['enter("4")'], 0.25), (['enter("4")', 'enter("42")'], 1.0), (["done"], 0.0)):
        environment.reset(ROW, 0)
        rewards = [environment.step(action).reward for action in actions]
        assert sum(rewards) == total


def test_trl_with_settings_further_tools_and_a_form_of_calls():
    environment = make("TRLSafe", ["add"], length=5, calls="json")
    assert environment.reset(ROW, 0) == "The code has 5 digits."
    assert environment.step("add(1)").done  # in this form it is text
    assert contents(environment.step('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')) == ["2"]


class Narrow:
    def reset(self, answer: str):
        return answer

    def look(self, place: str) -> str:
        """Look.

        Args:
            place: Where.
        """
        return place


def test_trl_reset_without_keywords_gets_the_columns_that_it_names():
    environment = build(EnvironmentSpec(f"{__name__}:Narrow"))()
    assert environment.reset(ROW, 0) == "42"
    final = environment.step("done")
    assert (final.reward, final.done) == (None, True)  # without get_reward the task's verifiers judge


# -- skyrl-gym


def test_skyrl_gym():
    environment = make("SkyRLEcho", bonus=0.125)
    assert environment.reset(ROW, 0) == [{"role": "user", "content": "Say it."}]
    step = environment.step("41")
    assert (step.observation, step.reward, step.done) == ([{"role": "user", "content": "not 41"}], 0.125, False)
    assert step.info == {"n": 1}
    assert environment.step("42").done
    chat = ROW | {"prompt": [{"role": "user", "content": "Go."}], "reward_spec": {"ground_truth": "7"}}
    environment.reset(chat, 0)
    assert environment.step("7").reward == 1.125
    environment.close()


class Rewriting:
    def init(self, prompt):
        return [{"role": "system", "content": "Be brief."}, *prompt], {}

    def step(self, action):
        raise AssertionError


def test_a_skyrl_gym_class_that_rewrites_the_prompt_is_refused():
    environment = build(EnvironmentSpec(f"{__name__}:Rewriting"))()
    with pytest.raises(ValueError, match=r"Rewriting\.init rewrites the prompt; it may only append messages"):
        environment.reset(ROW, 0)


# -- gymnasium


def test_gymnasium():
    environment = make("GymWalk")
    assert environment.reset(ROW | {"options": {"place": 4}}, 0) == "4"
    wrong = [environment.step(action) for action in ("up", "2", "1.5", "[1]", "")]
    assert {step.observation for step in wrong} == {"error: the action must be in Discrete(2)"}
    assert all(step.info["invalid"] and step.reward is None for step in wrong)
    step = environment.step("1")
    assert (step.observation, step.reward, step.done) == ("5", 1.0, True)
    assert environment.reset(ROW, 3) == environment.reset(ROW, 3)
    environment.close()


# -- textarena


@pytest.mark.parametrize("name", ["ArenaGuess", "wrapped_arena_guess"])
def test_textarena(name):
    environment = make(name, low=5)
    assert environment.reset(ROW, 1) == "Guess."
    assert environment.step("9").observation == "Lower."
    wrong = environment.step("nine")
    assert (wrong.observation, wrong.info["invalid"], wrong.reward) == ("A number, please.", True, None)
    step = environment.step("6")
    assert (step.reward, step.done, step.info["reason"]) == (1.0, True, "found")


# -- reset and step alone


def test_a_class_that_does_not_derive_from_ours():
    environment = make("Undeclared", ["add"])
    assert environment.reset(ROW, 3) == "Go. 3"
    assert contents(environment.step("add(1)")) == ["2"]
    assert environment.step("go").observation == "GO"
    assert environment.oracle() == "x"
    assert not hasattr(environment, "problem")
    environment.close()
