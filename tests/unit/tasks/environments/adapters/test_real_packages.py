"""The adapters against the packages themselves; a test whose package is not installed skips and says so.

pip install "heliostat[environments]" gymnasium textarena skyrl-gym openenv trl
"""

import functools

import pytest

from heliostat.config import ConfigError
from heliostat.tasks.environments.building import build, check
from heliostat.tasks.environments.contract import EnvironmentSpec
from tests.support.environment_classes import TRLSafe, add
from tests.support.served import served

MODULE = "tests.support.environment_classes"
ROW = {"prompt": "Go.", "answer": "42"}


def make(name, **settings):
    return build(check(EnvironmentSpec(name, settings=settings)))()


def needs(package):
    return pytest.importorskip(package, reason=f"needs the package {package}")


# -- gymnasium


@pytest.mark.slow
def test_gymnasium_frozen_lake():
    needs("gymnasium")
    environment = make("gymnasium/FrozenLake-v1", is_slippery=False, max_episode_steps=20)
    assert environment.reset(ROW, 2**40) == "0"
    assert environment.step("north").observation == "error: the action must be in Discrete(4)"
    rewards = [environment.step(str(action)) for action in (1, 1, 2, 2, 1, 2)]
    assert [step.reward for step in rewards] == [0, 0, 0, 0, 0, 1]
    assert [step.done for step in rewards] == [False] * 5 + [True]
    environment.close()


@pytest.mark.slow
def test_gymnasium_environment_of_texts():
    gymnasium = needs("gymnasium")

    class Parrot(gymnasium.Env):
        observation_space = gymnasium.spaces.Text(20)
        action_space = gymnasium.spaces.Text(5)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.word = "".join(self.np_random.choice(list("abc"), 3))
            return f"say {self.word}", {}

        def step(self, action):
            return "bye", float(action == self.word), True, False, {}

    gymnasium.register("Parrot-v0", Parrot)
    try:
        environment = make("gymnasium/Parrot-v0")
        first = environment.reset(ROW, 3)
        assert environment.reset(ROW, 3) == first
        assert environment.step("too long for it").info["invalid"]
        last = environment.step(first.removeprefix("say "))
        assert (last.observation, last.reward, last.done) == ("bye", 1.0, True)
    finally:
        del gymnasium.registry["Parrot-v0"]


@pytest.mark.slow
def test_gymnasium_arrays():
    needs("gymnasium")
    environment = make("gymnasium/Pendulum-v1")
    environment.reset(ROW, 0)
    assert environment.step("[0.5]").reward < 0
    assert environment.step("[0.5, 1]").info["invalid"]
    assert environment.step("[[]]").info["invalid"]
    environment.close()


# -- textarena

GAMES = {
    "2048-v0-super-easy": ["[up]", "[left]"],
    "Blackjack-v0": ["[Hit]", "[Stand]"],
    "FrozenLake-v0": ["[right]", "[down]"],
    "GuessTheNumber-v0": ["[3]", "[17]"],
    "LightsOut-v0": ["[0,0]", "[1,1]"],
    "Mastermind-v0": ["[1 2 3 4]", "[2 3 4 5]"],
    "Minesweeper-v0": ["[0 0]", "[3 3]"],
    "TowerOfHanoi-v0": ["[A C]", "[A B]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_textarena_games(game):
    needs("textarena")
    environment = make(f"textarena/{game}")
    first = environment.reset(ROW, 5)
    assert len(first) > 50
    said = [environment.step(action) for action in GAMES[game]]
    for action, step in zip(GAMES[game], said, strict=True):
        assert step.reward is None or step.done
        assert first[:50] not in step.observation  # each message once
        assert f"[Player] {action}" not in step.observation
    environment.reset(ROW, 5)
    for _ in range(50):
        step = environment.step("nonsense")
        if step.done:
            break
    assert step.done
    assert step.info["invalid"]
    assert step.reward < 1


@pytest.mark.slow
def test_textarena_game_is_won():
    needs("textarena")
    environment = make("textarena/GuessTheNumber-v0")
    environment.reset(ROW, 1)
    low, high = 1, 20
    for _ in range(10):
        guess = (low + high) // 2
        step = environment.step(f"[{guess}]")
        if step.done:
            break
        low, high = (guess + 1, high) if "higher" in step.observation.lower() else (low, guess - 1)
    assert (step.done, step.reward) == (True, 1.0)


@pytest.mark.slow
def test_textarena_refusals():
    needs("textarena")
    with pytest.raises(ConfigError, match=r"environment.siz \(did you mean 'environment.size'\?\)"):
        make("textarena/FrozenLake-v0", siz=3)
    with pytest.raises(ConfigError, match=r"'FrozenLak-v0' \(did you mean 'textarena/FrozenLake-v0'\?\)"):
        make("textarena/FrozenLak-v0")
    with pytest.raises(AssertionError, match="players"):
        make("textarena/TicTacToe-v0").reset(ROW, 0)


# -- skyrl-gym


@pytest.mark.slow
def test_skyrl_gym_multi_turn():
    needs("skyrl_gym")
    environment = make("skyrl-gym/gsm8k_multi_turn")
    assert environment.reset(ROW | {"extra_info": {"max_turns": 3}}, 0) == []
    first = environment.step("I think #### 41")
    assert (first.reward, first.done) == (pytest.approx(0.2 / 3), False)
    assert first.observation[0]["role"] == "user"
    assert environment.step("no number").reward == 0.0
    last = environment.step("#### 42")
    assert (last.reward, last.done, last.observation) == (1.0, True, [])
    environment.close()


@pytest.mark.slow
def test_skyrl_gym_class_of_a_user():
    package = needs("skyrl_gym.envs.base_text_env")
    from tests.support.environment_classes import SkyRLEcho

    class Echo(SkyRLEcho, package.BaseTextEnv):
        pass

    from heliostat.tasks.environments.adapters.recognition import recognise

    assert recognise(Echo).name == "skyrl-gym"
    environment = make("skyrl-gym/gsm8k")
    environment.reset(ROW, 0)
    assert environment.step("#### 42").reward == 1.0


# -- TRL


@pytest.mark.slow
def test_trl_trains_the_same_class_with_the_same_tools(tmp_path, monkeypatch):
    trl = needs("trl")
    import transformers
    from datasets import Dataset
    from trl.chat_template_utils import qwen3_chat_template

    from heliostat.models.loading.tiny import tiny_tokenizer

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = tiny_tokenizer(512)
    tokenizer.chat_template = qwen3_chat_template
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=512, **shape))
    options = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4, "max_steps": 1}
    trainer = trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", **options),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "Go."}], "answer": "42"}] * 2),
        environment_factory=TRLSafe,
        tools=[add],
    )
    trainer.train()
    assert {environment.rewards_asked for environment in trainer.environments} == {1}
    ours = build(check(EnvironmentSpec(f"{MODULE}:TRLSafe", (f"{MODULE}:add",))))()
    theirs = [transformers.utils.get_json_schema(tool) for tool in trainer.tools]
    assert ours.tools() == theirs


# -- OpenEnv


@functools.cache
def openenv_classes():
    """A text environment and its action and observation, as an author of OpenEnv writes them."""
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Say(Action):
        message: str

    class Heard(Observation):
        text: str = ""

    class Echo(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed=None, episode_id=None, answer=""):
            self.turns, self.answer = 0, answer
            return Heard(text=f"seed {seed}")

        def step(self, action, timeout_s=None, **arguments):
            if action.message == "crash":
                raise RuntimeError("it crashed")
            self.turns += 1
            right = action.message == self.answer
            return Heard(text=action.message.upper(), done=right, reward=1.0 if right else None)

        @property
        def state(self):
            return State(step_count=self.turns)

    return Echo, Say, Heard


@pytest.mark.slow
def test_openenv_server():
    needs("openenv")
    needs("wsproto")
    from openenv.core.env_server.http_server import create_fastapi_app

    from heliostat.tasks.environments.adapters.openenv_server import ServerError

    with served(create_fastapi_app(*openenv_classes(), max_concurrent_envs=2)) as url:
        first, second = make(f"openenv+{url}"), make(f"openenv+{url}")
        assert [one.reset(ROW, seed) for one, seed in ((first, 3), (second, 4))] == ["seed 3", "seed 4"]
        step = first.step("one")
        assert (step.observation, step.reward, step.done) == ("ONE", None, False)
        assert first.step('{"massage": "x"}').info["invalid"]
        with pytest.raises(ServerError, match="EXECUTION_ERROR: it crashed"):
            first.step("crash")
        last = second.step("42")
        assert (last.reward, last.done) == (1.0, True)
        with pytest.raises(ServerError, match="CAPACITY_REACHED"):
            make(f"openenv+{url}").reset(ROW, 0)
        first.close()
        second.close()


@pytest.mark.slow
def test_openenv_server_of_tools():
    needs("openenv")
    needs("wsproto")
    from fastmcp import FastMCP
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.mcp_environment import MCPEnvironment
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
    from openenv.core.env_server.types import Observation, State

    class Tools(MCPEnvironment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self):
            server = FastMCP("tools")
            server.tool(add)
            super().__init__(server)

        def reset(self, seed=None, episode_id=None, **arguments):
            return Observation()

        def _step_impl(self, action, timeout_s=None, **arguments):
            raise AssertionError

        @property
        def state(self):
            return State()

    with served(create_fastapi_app(Tools, CallToolAction, CallToolObservation, max_concurrent_envs=1)) as url:
        environment = make(f"openenv+{url}")
        environment.reset(ROW, 0)
        assert [tool["function"]["name"] for tool in environment.tools()] == ["add"]
        step = environment.step('<tool_call>{"name": "add", "arguments": {"a": 40, "b": 2}}</tool_call>\n')
        assert [message["content"] for message in step.observation] == ["42"]
        assert environment.step("add('x')").info["errors"] == 1
        assert environment.step("42").done
        environment.close()
