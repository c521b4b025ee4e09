"""Describe the environment of a recipe to the processes that build it.

Left out: building (``environments.building``) and running (``environments.pool``).
"""

from __future__ import annotations

from heliostat.config import EnvironmentSection
from heliostat.tasks.data.in_memory import PREFIX, find_function
from heliostat.tasks.environments.building import check, describe
from heliostat.tasks.environments.contract import EnvironmentSpec


def environment_of(section: EnvironmentSection, import_from: str = "") -> EnvironmentSpec | None:
    """Describe the environment of a recipe; ``None`` if it has none.

    Args:
        import_from: folder that modules are imported from, besides the working directory; empty: the section's own.

    Raises:
        ConfigError: a name, setting or tool is wrong, or was given by another program.
    """
    if not section.enabled:
        return None
    return check(
        describe(
            _given(section.name),
            [_given(tool) for tool in section.tools],
            section.settings,
            import_from or section.import_from,
            timeout_s=section.timeout_s,
            memory_mb=section.memory_mb,
            num_workers=section.num_workers,
        )
    )


def _given(name: str) -> object:
    """Return the object that a program gave under this name, or the name itself."""
    return find_function(name) if name.startswith(PREFIX) else name
