"""Environments for tests, most of them broken; specs name them as ``tests.support.environments:Name``."""

import ctypes
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

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
