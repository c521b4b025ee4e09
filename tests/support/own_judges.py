"""A verifier and an environment as a user would write them; their processes need no torch."""

from heliostat.tasks.environments.contract import Step


def digits(completions, **columns):
    return [sum(one.isdigit() for one in text) / max(1, len(text)) for text in completions]


class Echo:
    def reset(self, problem, seed):
        return "Say yes."

    def step(self, action):
        return Step("no" if "yes" not in action else "", float("yes" in action), "yes" in action)


class Fails(Echo):
    def step(self, action):
        raise KeyError(action)


class GivesAway(Echo):
    def problem(self, seed):
        return {"prompt": f"Problem {seed}."}

    def step(self, action):
        return Step("", 1.0, True)
