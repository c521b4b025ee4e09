"""What several promises need."""

import pytest

from heliostat.train.trainer import Trainer


@pytest.fixture
def dying(monkeypatch):
    """Stands for the death of the process after as many steps as ``left`` says."""
    log, state = Trainer._log, {"left": 0}

    def dies(self, step, values):
        log(self, step, values)
        if step > 0:
            state["left"] -= 1
            if state["left"] == 0:
                raise MemoryError("killed")

    monkeypatch.setattr(Trainer, "_log", dies)
    return state
