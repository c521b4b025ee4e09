"""Files and folders that stay correct, or are detected as damaged, after a kill, a full disk or a bit flip."""

from heliostat.storage.errors import Damaged, StorageError
from heliostat.storage.files import publish_file
from heliostat.storage.folders import FolderDraft, new_folder, publishing, recover_folder, remove_folder
from heliostat.storage.manifest import MANIFEST, changed_files, check_folder, read_manifest, write_manifest
from heliostat.storage.rows import (
    Extent,
    JsonRows,
    append_rows,
    extent_of,
    keep_rows,
    read_last_rows,
    read_rows,
    replace_rows,
    truncate_rows,
)
from heliostat.storage.signals import signals_held

__all__ = [
    "MANIFEST",
    "Damaged",
    "Extent",
    "FolderDraft",
    "JsonRows",
    "StorageError",
    "append_rows",
    "changed_files",
    "check_folder",
    "extent_of",
    "keep_rows",
    "new_folder",
    "publish_file",
    "publishing",
    "read_last_rows",
    "read_manifest",
    "read_rows",
    "recover_folder",
    "remove_folder",
    "replace_rows",
    "signals_held",
    "truncate_rows",
    "write_manifest",
]
