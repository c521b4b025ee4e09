"""A manifest of a folder's files by size and SHA-256, in a ``manifest.json`` that is itself checked.

    {"about": {...}, "files": {"model.safetensors": {"bytes": 1024, "sha256": "..."}}, "sha256": "of the above"}

The file must equal, byte for byte, the serialization of its content, so that every bit flip in it is detected.

Left out: files that are not listed, because readers of a checked folder use only listed files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from heliostat.storage.disk import walk
from heliostat.storage.errors import Damaged
from heliostat.storage.files import publish_file

MANIFEST = "manifest.json"


def write_manifest(folder: Path, about: Mapping[str, Any], names: Container[str] | None = None) -> None:
    """Write the manifest of every file below ``folder``; ``about`` holds further JSON values to protect.

    Args:
        names: entries of ``folder`` to list, files and folders; ``None``: all.

    Raises:
        OSError: the disk refused.
    """
    files = [path for path in walk(folder) if path.is_file() and path != folder / MANIFEST]
    if names is not None:
        files = [path for path in files if path.relative_to(folder).parts[0] in names]
    listed = {path.relative_to(folder).as_posix(): _described(path) for path in files}
    publish_file(folder / MANIFEST, _encoded({"about": dict(about), "files": listed}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``about`` and ``files`` of a manifest, without checking the files themselves.

    Raises:
        Damaged: it is missing or has changed.
    """
    path = folder / MANIFEST
    try:
        raw = _open(path).read_bytes()
        content = json.loads(raw)
        if _encoded({key: content[key] for key in ("about", "files")}) != raw:
            raise ValueError
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise Damaged(f"{path} is damaged") from None
    return {"about": content["about"], "files": content["files"]}


def check_folder(folder: Path) -> dict[str, Any]:
    """Compare every listed file with its digest; returns the manifest.

    Raises:
        Damaged: a file is missing or has changed; names the first one.
    """
    manifest = read_manifest(folder)
    for name, listed in manifest["files"].items():
        _check(folder / name, listed)
    return manifest


def changed_files(folder: Path, within: bool = True) -> list[str]:
    """Return one sentence for each listed file that has changed; empty if there is no manifest.

    Args:
        within: whether files in folders of ``folder``, which may be large, are compared as well.
    """
    if not (folder / MANIFEST).exists():
        return []
    found = []
    try:
        for name, listed in read_manifest(folder)["files"].items():
            if within or "/" not in name:
                try:
                    _check(folder / name, listed)
                except Damaged as error:
                    found.append(str(error))
    except Damaged as error:
        found.append(str(error))
    return found


def _check(path: Path, listed: Mapping[str, Any]) -> None:
    try:
        found = _described(_open(path))
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    if found != listed:
        raise Damaged(f"{path} is not what was written (its digest differs)")


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _open(path: Path) -> Path:
    """Open ``path`` if it is a regular file and no link."""
    if path.is_symlink():
        raise Damaged(f"{path} is a link, which was not written here")
    return path


def _encoded(content: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1) + "\n").encode()
