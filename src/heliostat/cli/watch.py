"""``heliostat watch``: the page of a run, served on this machine until Ctrl-C.

Left out: the server (``heliostat.report.live``).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from argparse import Namespace
from pathlib import Path
from types import FrameType

from heliostat.cli.runs import ROOT
from heliostat.printed import say


def watch(args: Namespace) -> int:
    """Run ``heliostat watch``."""
    from heliostat.report.live.server import LiveServer, address, listen

    folder = args.run or _newest()
    _check(folder)
    listening = listen(args.port)
    url, port = address(listening), listening.getsockname()[1]
    with LiveServer(folder, listening) as server:
        signal.signal(signal.SIGTERM, _stop)
        say(f"watching {folder} on {url} (Ctrl-C ends)")
        say(f"from another machine: ssh -L {port}:127.0.0.1:{port} USER@THIS-MACHINE, then open the same address")
        sys.stdout.flush()
        if not args.no_browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
    return 0


def _newest() -> Path:
    from heliostat.config import ConfigError
    from heliostat.report.listing import newest_run

    folder = newest_run(ROOT)
    if folder is None:
        raise ConfigError(f"there are no runs in {ROOT}/; name the folder to watch, which need not exist yet")
    return folder


def _check(folder: Path) -> None:
    """Refuse a folder that will never be a run.

    Raises:
        ConfigError: it is a file, a folder of ``heliostat control``, or holds other things.
    """
    from heliostat.config import ConfigError
    from heliostat.report.listing import list_runs

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    found = [one for one in list_runs([folder]) if one.folder == folder]
    if not found:
        raise ConfigError(f"{folder} is not a run folder; heliostat runs {folder} lists the runs in it")
    if found[0].run is None:
        raise ConfigError(f"{folder} is a run of heliostat control, whose page is written at its end")


def _has_screen() -> bool:
    """Return whether a browser would open beside the terminal, not in it."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
