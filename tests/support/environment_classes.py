"""Environments as their authors write them for other packages, without those packages, and tools."""

import random
from typing import Literal

from heliostat.tasks.environments.contract import Environment, Step


class Counter(Environment):
    """Ours: counts to a target; a turn is a number to add."""

    def __init__(self, target: int = 3, step_size: float = 1.0):
        self.target, self.step_size = target, step_size

    def reset(self, problem, seed):
        self.sum = 0.0
        return f"count to {self.target}"

    def step(self, action):
        self.sum += float(action) * self.step_size
        return Step(str(self.sum), reward=1.0 if self.sum == self.target else None, done=self.sum >= self.target)

    def oracle(self):
        return "1"


class Undeclared:
    """Ours by its methods alone."""

    def reset(self, problem, seed):
        return f"{problem['prompt']} {seed}"

    def step(self, action):
        return Step(action.upper(), reward=0.5, done=True)

    def oracle(self):
        return "x"


class TRLSafe:
    """For TRL's environment_factory: find the code by asking for its digits."""

    def __init__(self, length: int = 2):
        self.length = length
        self.rewards_asked = 0

    def reset(self, **row) -> str | None:
        self.code = str(row["answer"])
        self.reward = 0.0
        return f"The code has {self.length} digits."

    def digit(self, index: int) -> str:
        """
        Read one digit of the code.

        Args:
            index: Place of the digit, from 0.

        Returns:
            The digit.
        """
        return self.code[index]

    def enter(self, code: str) -> str:
        """
        Enter the code.

        Args:
            code: The whole code.
        """
        self.reward = 1.0 if code == self.code else 0.25
        return "open" if code == self.code else "closed"

    def get_reward(self) -> float:
        self.rewards_asked += 1
        return self.reward


class TRLSafeWithMore(TRLSafe):
    """With methods that are no tools."""

    def untyped(self, anything):
        """Not a tool: it has no types."""

    def undocumented(self, key: str) -> str:
        return key

    def _hidden(self, key: str) -> str:
        """
        Not public.

        Args:
            key: A key.
        """
        return key


class AsyncTRLSafe(TRLSafe):
    async def digit(self, index: int) -> str:
        """
        Read one digit of the code.

        Args:
            index: Place of the digit, from 0.
        """
        return self.code[index]

    async def get_reward(self) -> float:
        return self.reward


class SkyRLEcho:
    """For skyrl-gym: repeats the turn, and ends when it is the ground truth."""

    def __init__(self, env_config=None, extras=None, bonus: float = 0.0):
        self.truth = extras["reward_spec"]["ground_truth"]
        self.bonus = bonus

    def init(self, prompt):
        return [*prompt, {"role": "user", "content": "Say it."}], {}

    def step(self, action):
        done = action == self.truth
        observations = [] if done else [{"role": "user", "content": f"not {action}"}]
        return {"observations": observations, "reward": float(done) + self.bonus, "done": done, "metadata": {"n": 1}}

    def close(self):
        pass


class TextSpace:
    def contains(self, value):
        return isinstance(value, str) and len(value) < 6


class Discrete:
    """Gymnasium's space of that name, as far as it is used."""

    dtype = int

    def __init__(self, n):
        self.n = n

    def contains(self, value):
        return type(value) is int and 0 <= value < self.n

    def __str__(self):
        return f"Discrete({self.n})"


class GymWalk:
    """For gymnasium: walk from a random place to place 5."""

    def __init__(self, size: int = 6):
        self.action_space = Discrete(2)
        self.size = size

    def reset(self, *, seed=None, options=None):
        self.place = (options or {}).get("place", random.Random(seed).randrange(3))
        return self.place, {}

    def step(self, action):
        self.place += 1 if action else -1
        return self.place, float(self.place == 5), self.place == 5, self.place < 0, {}

    def close(self):
        pass


class ArenaState:
    error_count = 0


class ArenaGuess:
    """For textarena: one player, messages of (sender, text, kind), the player's own moves among them."""

    def __init__(self, low: int = 1):
        self.low = low
        self.state = ArenaState()

    def reset(self, num_players, seed=None):
        assert num_players == 1
        self.number = self.low + seed % 3
        self.messages = [(-1, "Guess.", "PROMPT")]
        self.state.error_count = 0

    def get_observation(self):
        messages, self.messages = self.messages, []
        return 0, messages

    def step(self, action):
        self.messages.append((0, action, "PLAYER_ACTION"))
        if not action.isdigit():
            self.state.error_count += 1
            self.messages.append((-1, "A number, please.", "GAME_ADMIN"))
            return False, {}
        self.state.error_count = 0
        self.messages.append((-1, "Higher." if int(action) < self.number else "Lower.", "GAME_MESSAGE"))
        return int(action) == self.number, {}

    def close(self):
        return {0: 1.0}, {0: {"reason": "found", "invalid_move": False}}


class ArenaWrapper:
    """Textarena's wrappers: everything is passed on; the observation repeats the whole conversation."""

    def __init__(self, env):
        self.env = env
        self.said = []

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, num_players, seed=None):
        return self.env.reset(num_players, seed)

    def step(self, action):
        return self.env.step(action.strip("[]"))

    def get_observation(self):
        player, messages = self.env.get_observation()
        self.said += [text for _, text, _ in messages]
        return player, "\n".join(self.said)

    def close(self):
        return self.env.close()

    def is_wrapped_with(self, cls):
        return isinstance(self, cls)


def wrapped_arena_guess(low: int = 1):
    """A factory: only the object that it returns tells its kind."""
    return ArenaWrapper(ArenaGuess(low))


class NoEnvironment:
    def run(self):
        """Run."""


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def weigh(animal: Literal["cat", "dog"], times: float = 1.0) -> float:
    """Return the weight of an animal.

    Args:
        animal: The animal.
        times: A factor.
    """
    return {"cat": 4.0, "dog": 20.0}[animal] * times


def fail(reason: str) -> str:
    """Fail.

    Args:
        reason: The message.
    """
    raise RuntimeError(f"{reason}\nsecond line")
