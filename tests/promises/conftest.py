"""What several promises need."""

import pytest

from heliostat.train.run_context import RunContext
from tests.support import small


@pytest.fixture(scope="module", params=small.EVERY_WEIGHTS, ids=str)
def weights(request):
    """The small run trains each of these: a promise that asks for this fixture is kept for every one of them.

    ``@pytest.mark.parametrize("weights", small.PLAIN_WEIGHTS, ids=str, indirect=True)`` leaves adapters out.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "weights", request.param)
        yield request.param


@pytest.fixture
def dying(monkeypatch):
    """Stands for the death of the process after as many steps as ``left`` says, or ``left_warm`` supervised ones."""
    log, state = RunContext.log, {"left": 0, "left_warm": 0}

    def dies(self, step, values):
        log(self, step, values)
        phase = "left" if step > 0 else "left_warm"
        state[phase] -= 1
        if state[phase] == 0:
            raise MemoryError("killed")

    monkeypatch.setattr(RunContext, "log", dies)
    return state
