"""The state of a run, part by part: saved in a checkpoint, and restored by a resumed run or a rollback.

    save       every part goes into the checkpoint
    resume     every part is restored
    roll back  the ``restored`` parts are restored; those that ``survive`` are unchanged, for the reason in their entry;
               the ``dropped`` ones are emptied

All three use one list of parts, so they cannot disagree. Weights and optimizer are always restored, by the checkpoint
itself.

Left out: the list of parts (``train.builders``), and the files of a checkpoint (``train.run_folder.checkpoints``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from heliostat.storage import Extent
from heliostat.train.run_folder.checkpoints import Checkpoints

ROLLOUTS = "rollouts"
"""The part that holds tensors; a checkpoint keeps it in a file of its own."""


class Stateful(Protocol):
    """An object with torch's usual pair of methods for its state."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run's state.

    Attributes:
        name: its key in a checkpoint.
        save: returns the state, as plain values.
        load: restores a state that ``save`` returned.
        after_rollback: see the top of this file.
        why: the reason, for parts that are not restored.
        drop: empties the part, for parts that are dropped.
    """

    name: str
    save: Callable[[], Any]
    load: Callable[[Any], None]
    after_rollback: Literal["restored", "survives", "dropped"] = "restored"
    why: str = ""
    drop: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        needs_why, needs_drop = self.after_rollback != "restored", self.after_rollback == "dropped"
        if needs_why != bool(self.why) or needs_drop != (self.drop is not None):
            raise ValueError(f"part '{self.name}' needs a reason if it is not restored, and ``drop`` if it is dropped")


def stateful(name: str, owner: Stateful) -> Part:
    """Build a part of an object with the usual two methods; a rollback restores it."""
    return Part(name, owner.state_dict, owner.load_state_dict)


def attribute(name: str, owner: object, key: str) -> Part:
    """Build a part of one attribute of an object; a rollback restores it."""
    return Part(name, lambda: getattr(owner, key), lambda value: setattr(owner, key, value))


def surviving(part: Part, why: str) -> Part:
    """Let a rollback leave a part as it is, for the reason ``why``."""
    return Part(part.name, part.save, part.load, "survives", why)


@dataclass(frozen=True, slots=True)
class RunState:
    """All parts of a run, and the checkpoints they go to.

    Raises:
        ValueError: two parts have the same name.

    **Limits** After ``roll_back(step)`` every part that is restored equals the same part of that checkpoint.
    """

    checkpoints: Checkpoints
    model: nn.Module
    parts: Sequence[Part]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"two parts of a run's state have the same name: {', '.join(names)}")

    def save(self, step: int, optimizer: torch.optim.Optimizer, logs: Mapping[str, Extent] | None = None) -> None:
        """Write the checkpoint of ``step``, which makes those of later steps obsolete.

        Args:
            logs: the extents of the run's logs, by name.

        Raises:
            CheckpointError: the disk refused.
        """
        state = {part.name: part.save() for part in self.parts}
        rollouts = state.pop(ROLLOUTS, [])
        self.checkpoints.save(step, self.model, optimizer, state, rollouts, logs)

    def resume(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Restore every part from the checkpoint of ``step``.

        Raises:
            CheckpointError: it cannot be read, or is of another model.
        """
        state = self._read(step, optimizer)
        for part in self.parts:
            if part.name in state:
                part.load(state[part.name])

    def roll_back(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Roll back to the checkpoint of ``step``; later ones stay until the next one is saved.

        Raises:
            CheckpointError: it cannot be read.
        """
        for part in self.parts:
            if part.drop is not None:  # before weights move: one of them may be sampling
                part.drop()
        state = self._read(step, optimizer)
        for part in self.parts:
            if part.after_rollback == "restored" and part.name in state:
                part.load(state[part.name])

    def _read(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Read a checkpoint's state; earlier versions stored the guard's judgement in the guard's other state."""
        state = {"bad_in_a_row": 0, **self.checkpoints.load(step, self.model, optimizer)}
        if "guard" in state:
            state.setdefault("judgement", state["guard"])
        return state
