"""``heliostat push``: upload a finished run's model to the Hugging Face hub, after a question.

Left out: checks and the upload itself (``heliostat.publish``).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from heliostat.printed import say

if TYPE_CHECKING:
    from heliostat.publish import Upload


def push(args: Namespace) -> int:
    """Run ``heliostat push``: list the files, ask, and upload them; exit code 1 if the answer is no."""
    from heliostat.config import ConfigError
    from heliostat.publish import prepare, send

    upload = prepare(args.run_dir, args.repo, args.adapter)
    _list(upload)
    if args.dry_run:
        say(f"\ndry run: nothing was uploaded\n\n{upload.card}" if upload.card else "\ndry run: nothing was uploaded")
        return 0
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nothing was uploaded: there is no terminal to ask at; --yes uploads without a question")
        if input(f"upload to {upload.repo_id}? [y/N] ").strip().lower() not in ("y", "yes"):
            say("nothing was uploaded")
            return 1
    say(f"uploaded: {send(upload, private=args.private, revision=args.revision)}")
    return 0


def _list(upload: Upload) -> None:
    for path in upload.files:
        say(f"{path.stat().st_size:>14,}  {path.name}")
    say(f"{upload.num_bytes:>14,}  bytes in {len(upload.files)} files, from {upload.folder} to {upload.repo_id}")
    if not upload.card:
        say("the folder has no README.md, so the repository gets no card")
