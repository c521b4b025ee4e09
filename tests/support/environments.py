"""Environments for tests, most of them broken; specs name them as ``tests.support.environments:Name``."""

import ctypes
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from heliostat.tasks.environments.contract import Environment, EnvironmentSpec, Step
from tests.support.hostile_rewards import connection

HERE = "tests.support.environments"


def spec_of(name, **options):
    settings = options.pop("settings", {})
    return EnvironmentSpec(name=f"{HERE}:{name}", settings=settings, **{"num_workers": 1, "timeout_s": 20.0, **options})


class Adder(Environment):
    """Adds up numbers: the answer to an action depends on the seed and all actions before."""

    def __init__(self, start=0):
        self.start = start

    def reset(self, problem, seed):
        self.total = self.start + seed
        return f"{problem.get('prompt', '')}: {self.total}"

    def step(self, action):
        self.total += int(action)
        return Step(f"total {self.total}", reward=self.total / 2, done=action == "0", info={"calls": 1})

    def oracle(self):
        return str(100 - self.total)


FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


@fault
def hangs():
    time.sleep(600)


@fault
def hangs_holding_the_gil():
    ctypes.PyDLL(None).sleep(600)


@fault
def hangs_with_children():
    subprocess.run([sys.executable, "-c", f"import time; time.sleep(600)  # {os.environ['TEST_MARKER']}"])


@fault
def raises():
    raise RuntimeError("the world is out")


@fault
def exits():
    sys.exit("no more")


@fault
def dies():
    os._exit(3)


@fault
def crashes():
    ctypes.string_at(0)


@fault
def eats_memory():
    return [bytearray(2**30) for _ in range(64)]


@fault
def recurses():
    return recurses()


@fault
def sends_rubbish():
    connection().send_bytes(b"rubbish")


@fault
def sends_a_forged_step():
    step = {"observation": "well done", "reward": 1e9, "done": True, "info": {}}
    connection().send_bytes(json.dumps({"serial": 0, "value": step}).encode())


@fault
def sends_a_partial_message():
    os.write(connection().fileno(), b"\0\0\1\0half")
    time.sleep(600)


@fault
def sends_an_endless_message():
    os.write(connection().fileno(), b"\x7f\xff\xff\xff" + b"x" * 100)
    time.sleep(600)


class Faulty(Adder):
    """Has the fault that an action names; an action ``once hangs`` has it in the first process only."""

    def __init__(self, log=""):
        super().__init__()
        self.log = log

    def reset(self, problem, seed):
        self._record("reset")
        if fault := problem.get("fault"):
            self._break(fault)
        return super().reset(problem, seed)

    def step(self, action):
        self._record(action)
        if not action.isdigit():
            self._break(action)
            action = "1"
        return super().step(action)

    def close(self):
        self._record("close")

    def _break(self, action):
        first, _, name = action.partition(" ")
        if first == "once":
            marker = Path(f"{self.log}.{name}")
            if marker.exists():
                return
            marker.touch()
        FAULTS[name or first]()

    def _record(self, what):
        if self.log:
            with Path(self.log).open("a") as log:
                log.write(f"{os.getpid()} {what}\n")


class Draws(Environment):
    """Answers with draws from the global generators; imports numpy at its first reset."""

    def reset(self, problem, seed):
        import numpy as np

        return f"{random.random()} {np.random.rand()}"  # noqa: NPY002  the global one

    def step(self, action):
        import numpy as np

        return Step(f"{action} {random.randrange(10**9)} {np.random.randint(10**9)}")  # noqa: NPY002

    def oracle(self):
        return str(random.random())


class SeedsTheGlobal(Draws):
    """Seeds the global generators itself, as textarena's games do."""

    def reset(self, problem, seed):
        import numpy as np

        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        return super().reset(problem, seed)


class Clock(Environment):
    """Is no function of its seed: every process shows another number."""

    def reset(self, problem, seed):
        return "a clock"

    def step(self, action):
        if action == "die":
            os._exit(1)
        return Step(str(time.monotonic_ns()))


class Chatty(Environment):
    """Answers with messages, and with the values that an action names."""

    def reset(self, problem, seed):
        return [{"role": "user", "content": f"hello \ud800 {seed}"}]

    def step(self, action):
        import numpy as np

        return {
            "messages": Step([{"role": "tool", "content": "ok", "name": "f"}], None, False),
            "numpy": Step("n", np.float32(0.5), np.bool_(True), {"success": np.bool_(True), "calls": np.int64(2)}),
            "extras": Step("e", 1, False, {"score": 3, "map": {"a": [1]}, "long": "x" * 5000, "object": object()}),
            "nan": Step("", float("nan")),
            "word": Step("", "1.0"),
            "success": Step("", 1.0, True, {"success": "yes"}),
            "tuple": ("observation", 1.0, True, {}),
            "none": None,
            "bytes": Step(b"bytes"),
            "no role": Step([{"content": "?"}]),
            "object": Step([{"role": "user", "content": object()}]),
            "long": Step("x" * (1 << 21)),
            "negative": Step("", 0.0, False, {"errors": -1}),
        }[action]

    def tools(self):
        return [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


class NoImport(Environment):
    """Fails where its process has loaded something heavy."""

    def reset(self, problem, seed):
        heavy = {"torch", "numpy", "pydantic", "reasoning_gym"} & set(sys.modules)
        assert not heavy, heavy
        return ""

    def step(self, action):
        from heliostat import post_train

        post_train("x.toml")
        return Step("trained")


class Silent(Environment):
    """Shows nothing at first."""

    def reset(self, problem, seed):
        return None

    def step(self, action):
        time.sleep(0.2)
        return Step(action)


class Guess(Environment):
    """A sound environment: a number to find, with answers that help."""

    def reset(self, problem, seed):
        self.secret = self.choose(problem, seed)
        return "Guess my number, from 0 to 999."

    def choose(self, problem, seed):
        return random.Random(seed).randrange(1000)

    def step(self, action):
        if not action.strip().isdigit():
            return Step("That is no number.", 0.0, info={"invalid": True})
        guess = int(action)
        if guess == self.secret:
            return Step("Right.", 1.0, done=True, info={"success": True})
        return Step("higher" if guess < self.secret else "lower", 0.0)

    def oracle(self):
        return str(self.secret)


class PaysAnything(Guess):
    def step(self, action):
        return Step("thanks", 1.0, done=True)


class PaysPoliteness(Guess):
    """Pays a tenth for every turn."""

    def step(self, action):
        step = super().step(action)
        return step if step.done else Step(step.observation, 0.1)


class WrongOracle(Guess):
    def oracle(self):
        return str(self.secret + 1)


class BreaksOnWords(Guess):
    def step(self, action):
        int(action or "0")
        return super().step(action)


class Unrepeatable(Guess):
    def choose(self, problem, seed):
        return int.from_bytes(os.urandom(4), "big") % 1000

    def step(self, action):
        step = super().step(action)
        return Step(f"{step.observation} #{self.secret * 7919 % 1009}", step.reward, step.done, step.info)


class SharesItsBoard(Guess):
    """Keeps the secret in a variable of the class, and moves it in every turn."""

    board: ClassVar = [0]

    def choose(self, problem, seed):
        self.board[0] = seed % 500
        return self.board[0]

    def step(self, action):
        self.board[0] += 1
        self.secret = self.board[0]
        return super().step(action)

    def oracle(self):
        return str(self.board[0] + 1)


class SeedsTheGlobalAndGuesses(Guess):
    """Seeds python's global generator in reset and draws from it in step."""

    def choose(self, problem, seed):
        random.seed(seed)
        return random.randrange(1000)

    def step(self, action):
        step = super().step(action)
        return step if step.done else Step(f"{step.observation} {random.randrange(100)}", step.reward)


class DrawsUnseeded(Guess):
    """Draws from python's global generator, and seeds it nowhere."""

    def choose(self, problem, seed):
        self.mark = random.randrange(10**6)
        return super().choose(problem, seed)

    def step(self, action):
        step = super().step(action)
        return Step(f"{step.observation} #{self.mark}", step.reward, step.done, step.info)


class OneNumber(Guess):
    def choose(self, problem, seed):
        return 7


class NumberOfTheProblem(Guess):
    def choose(self, problem, seed):
        return int(problem["answer"])


class Unscored(Guess):
    def step(self, action):
        step = super().step(action)
        return Step(step.observation, None, step.done)


class Slow(Guess):
    def step(self, action):
        time.sleep(0.1)
        return super().step(action)


class Phone(Environment):
    """Has a tool; the answer is impossible without it."""

    def reset(self, problem, seed):
        self.code = random.Random(seed).randrange(10**6)
        return "Call ask(name='door') and say the code backwards."

    def step(self, action):
        if "<tool_call>" in action:
            call = json.loads(action.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert call["name"] == "ask", call
            assert call["arguments"].keys() == {"name", "count", "way", "deep"}, call
            return Step([{"role": "tool", "content": str(self.code)}], 0.0, info={"calls": 1})
        return Step("", float(action.strip() == str(self.code)[::-1]), done=True)

    def tools(self):
        parameters = {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "count": {"type": ["integer", "null"]},
                "way": {"type": "string", "enum": ["up", "down"]},
                "deep": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["name"],
        }
        return [{"type": "function", "function": {"name": "ask", "parameters": parameters}}]


class Worlds(Environment):
    """Shows its seed, rewards every action by its length, and ends after a few; may fail or see other worlds."""

    def __init__(self, fails="", differs=False, num_turns=3):
        self.fails, self.differs, self.num_turns = fails, differs, num_turns

    def reset(self, problem, seed):
        self.turn = 0
        self.number = problem.get("number", 0)
        return f"world {time.monotonic_ns() if self.differs else seed}"

    def step(self, action):
        self.turn += 1
        if self.fails == "always" or (self.fails == "odd" and self.number % 2):
            raise RuntimeError("broken")
        done = self.turn == self.num_turns
        return Step(f"heard {len(action)}", len(action) % 3 / 8, done, {"success": True} if done else {})

    def oracle(self):
        return "1 + 2"


class Mute(Environment):
    """Ends after two turns, without a reward or a success."""

    def reset(self, problem, seed):
        self.turn = 0
        return "speak"

    def problem(self, seed):
        return {"prompt": f"{seed % 1000}"}

    def step(self, action):
        self.turn += 1
        return Step("go on", done=self.turn == 2)

    def oracle(self):
        return "1"
