"""Steps inside DDP's ``join()``, which are refused.

``join()`` replaces the collectives of ranks that ran out of rows, but only DDP's own. An optimizer that exchanges
statistics or compares replicas would wait for such a rank until the group's timeout.

Left out: comparing the ranks that do take part (``replicas``).
"""

from __future__ import annotations

import gc

from torch.nn.parallel import DistributedDataParallel


def refuse_joining(owner: str) -> None:
    """Raise while a model of this process is inside ``join()``.

    Args:
        owner: name of the optimizer, for the error.

    Raises:
        RuntimeError: one is, and its ranks may run out of rows at different steps.
    """
    for model in gc.get_objects():
        if not issubclass(type(model), DistributedDataParallel):
            continue
        config = getattr(model, "_join_config", None)
        if config is not None and config.enable and not config.throw_on_early_termination:
            raise RuntimeError(
                f"{owner}: inside DistributedDataParallel's join() a rank without rows takes no part in the exchange "
                "of statistics, and the others would wait for it; give every rank as many batches (drop_last), or end "
                "all ranks together with join(throw_on_early_termination=True)"
            )
