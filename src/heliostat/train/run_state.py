"""The state of a run as a list of parts, which checkpoints store and resumed runs and rollbacks restore.

    save       store every part in the checkpoint
    resume     restore every part
    roll back  restore the parts that are ``restored``, keep those that ``survive`` for the reason in their entry, and
               empty those that are ``dropped``

One list serves all three, so that they cannot disagree. Weights and optimizer are always restored, by the checkpoint
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
"""The part that holds tensors; a checkpoint stores it in a file of its own."""


class Stateful(Protocol):
    """An object with the usual two methods for its state."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run's state.

    Attributes:
        name: its key in a checkpoint.
        save: returns the state, as plain values.
        load: takes what ``save`` returned.
        after_rollback: effect of a rollback on the part; see the top of this file.
        why: the reason, for parts that are not restored.
        drop: empties the part; for parts that are dropped.
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
    """Build a restored part from an object with the usual two methods."""
    return Part(name, owner.state_dict, owner.load_state_dict)


def attribute(name: str, owner: object, key: str) -> Part:
    """Build a restored part from an attribute with a plain value."""
    return Part(name, lambda: getattr(owner, key), lambda value: setattr(owner, key, value))


def surviving(part: Part, why: str) -> Part:
    """Return the same part as one that a rollback leaves unchanged."""
    return Part(part.name, part.save, part.load, "survives", why)


@dataclass(frozen=True, slots=True)
class RunState:
    """All parts of a run's state, and its checkpoints.

    Raises:
        ValueError: two parts have the same name.

    **Limits** After ``roll_back(step)`` every restored part equals that part of the checkpoint.
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
            logs: extents of the run's logs, by name.

        Raises:
            CheckpointError: writing failed.
        """
        state = {part.name: part.save() for part in self.parts}
        rollouts = state.pop(ROLLOUTS, [])
        self.checkpoints.save(step, self.model, optimizer, state, rollouts, logs)

    def resume(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Restore every part from the checkpoint of ``step``.

        Raises:
            CheckpointError: the checkpoint cannot be read, or is of another model.
        """
        state = self._read(step, optimizer)
        for part in self.parts:
            if part.name in state:
                part.load(state[part.name])

    def roll_back(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Roll back to the checkpoint of ``step``; later checkpoints stay until the next one is saved.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        for part in self.parts:
            if part.drop is not None:  # before weights change, since a dropped part may be sampling
                part.drop()
        state = self._read(step, optimizer)
        for part in self.parts:
            if part.after_rollback == "restored" and part.name in state:
                part.load(state[part.name])

    def _read(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Load a checkpoint's state; earlier versions stored the guard's judgement in the guard's part."""
        state = {"bad_in_a_row": 0, **self.checkpoints.load(step, self.model, optimizer)}
        if "guard" in state:
            state.setdefault("judgement", state["guard"])
        return state
