"""The keywords that loading a model from a file accepts.

Left out: reading the file, which is Stable-Baselines3's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.save_util import load_from_zip_file

from heliostat.config import nearest


def check_keywords(
    algorithm: type, path: Any, given: Mapping[str, Any], custom_objects: dict[str, Any] | None = None
) -> None:
    """Refuse keywords of ``load`` that would become attributes which nothing reads.

    Args:
        path: the file; looked into only for names that are no settings of the algorithm.

    Raises:
        TypeError: a keyword is neither a setting nor anything else that the file holds.
    """
    known = set(inspect.signature(algorithm).parameters)
    if given.keys() <= known:
        return
    data, _, _ = load_from_zip_file(path, custom_objects=custom_objects)
    known |= set(data or {})  # n_envs, observation_space, lr_schedule, and attributes of the user's own class
    for name in given:
        if name not in known:
            raise TypeError(f"{algorithm.__name__}.load has no keyword '{name}'{nearest(name, known)}")
