"""The page of a run that goes on: over HTTP, in a browser while the folder grows, and as a command until Ctrl-C."""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from heliostat.report.live.process import WatchedRun
from heliostat.report.live.server import LiveServer, PortRefused, address, listen
from heliostat.report.live.view import LiveView
from heliostat.storage import read_rows
from heliostat.train.run_folder.lock import take_lock
from tests.unit.report.browser import Browser
from tests.unit.report.synthetic import Shape, kill, make_run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed at step 70 of 200. Read only."""
    return kill(make_run(tmp_path_factory.mktemp("live") / "run", Shape(num_problems=20)))


@pytest.fixture
def going(stopped: Path, tmp_path: Path) -> Iterator[Path]:
    """A run at step 70 that this process works on."""
    folder = Path(shutil.copytree(stopped, tmp_path / "a run"))
    with take_lock(folder) as lock:
        yield folder
        lock.truncate(0)


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """``served(folder)`` serves a folder, and returns the address."""
    running: list[tuple[LiveServer, threading.Thread]] = []

    def serve(folder: Path) -> str:
        server = LiveServer(folder, listen(0))
        server.view = LiveView(folder, min_seconds=0.0, max_share=math.inf)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return address(server.socket)

    yield serve
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(url: str, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply.status, dict(reply.headers), body


def add_step(folder: Path, **changes: float) -> int:
    """Append a step like the last one; returns its number."""
    last = read_rows(folder / "metrics.jsonl").rows[-1]
    row = last | {"step": last["step"] + 1, "time/total": last["time/total"] + 1.3} | changes
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex("\n") + 1] + json.dumps(row) + "\n", encoding="utf-8")
    return int(row["step"])


def test_only_the_page_and_the_state_are_served_and_only_to_this_machine(going: Path, served) -> None:
    url = served(going)
    status, headers, page = ask(url)
    assert status == 200
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "What this page could not read" not in page  # files that a run has yet to write are no loss
    assert ask(url, If_None_Match=headers["ETag"])[0] == 304
    state = json.loads(ask(url, "/status.json")[2])
    assert (state["status"], state["step"], state["num_steps"]) == ("running", 69, 200)
    assert state["seconds_left"] == pytest.approx(131 * 1.3)
    assert f'"{state["page"]}"' == headers["ETag"]
    for path in ("/recipe.toml", "/../recipe.toml", "//etc/passwd", "/metrics.jsonl"):
        assert ask(url, path)[0] == 404
    for host in ("evil.example", "127.0.0.1.evil.example:80", "", "evil.example:8475"):
        assert ask(url, Host=host)[0] == 403
        assert ask(url, "/status.json", Host=host)[0] == 403
    for host in ("localhost:9999", "localhost", "[::1]:80"):
        assert ask(url, "/status.json", Host=host)[0] == 200
    assert {ask(url, method=method)[0] for method in ("POST", "PUT", "DELETE", "HEAD")} == {501}


def test_a_page_is_computed_only_if_it_is_asked_for_and_files_have_changed(going: Path) -> None:
    view = LiveView(going, min_seconds=0.0, max_share=math.inf)
    for _ in range(3):
        view.status()
    assert view.num_drawn == 0
    view.page()
    view.page()
    assert view.num_drawn == 1
    add_step(going)
    slow = LiveView(going, min_seconds=3600.0)
    slow.page()
    first = json.loads(slow.status())["page"]
    add_step(going)
    slow.page()
    assert slow.num_drawn == 1
    assert json.loads(slow.status())["page"] == first


def test_a_folder_may_appear_end_and_disappear(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    view = LiveView(folder, min_seconds=0.0, max_share=math.inf)

    def state() -> str:
        return str(json.loads(view.status())["status"])

    assert state() == "missing"
    assert "Waiting for the run folder" in view.page()[0]
    folder.mkdir()
    assert state() == "missing"
    lock = take_lock(folder)
    assert state() == "starting"
    assert "waiting for the first step" in view.page()[0]
    for name in ("recipe.toml", "versions.json", "metrics.jsonl"):
        shutil.copy(stopped / name, folder / name)
    assert state() == "running"
    assert 'id="chart-reward' in view.page()[0]
    lock.truncate(0)
    lock.close()
    assert state() == "interrupted"
    (folder / "summary.json").write_text('{"status": "finished", "reason": ""}')
    assert state() == "done"
    assert "Finished after" in view.page()[0]
    shutil.rmtree(folder)
    assert state() == "missing"
    gone = view.page()[0]
    assert "The run folder is gone" in gone
    assert 'id="chart-reward' in gone  # the last page stays


def test_a_port_that_is_taken_is_a_sentence_and_never_ends_a_run(going: Path) -> None:
    with listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortRefused, match=f"port {port} is in use; choose another with --port"):
            listen(port)
        said: list[str] = []
        with WatchedRun(said.append, port) as watched:
            watched.start(going)
        assert said == [
            f"the run has no page to watch: port {port} is in use; choose another with --port, or leave it out for a "
            f"free one; heliostat watch {going} serves one"
        ]


@pytest.mark.slow
def test_the_server_of_a_run_ends_with_it(going: Path) -> None:
    said: list[str] = []
    with WatchedRun(said.append, 0) as watched:
        watched.start(going)
        url = said[0].removeprefix("watch: ")
        assert ask(url, "/status.json")[0] == 200
        process = watched.process
        assert process is not None
    assert process.poll() == 0
    with pytest.raises(ConnectionRefusedError):
        ask(url)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_ctrl_c(going: Path, number: int) -> None:
    opened = going.parent / "opened"
    command = [sys.executable, "-m", "heliostat", "watch", str(going), "--port", "0"]
    browser = {"BROWSER": f"{sys.executable} -c 'import sys; open(sys.argv[2], \"w\").write(sys.argv[1])' %s {opened}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | browser)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"watching {going} on http://127.0.0.1:")
    url = line.split(" on ")[1].split()[0]
    assert f"ssh -L {url.rsplit(':', 1)[1].rstrip('/')}:127.0.0.1:" in process.stdout.readline()
    assert ask(url)[0] == 200
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 0


def until(browser: Browser, expression: str) -> None:
    """Wait until an expression holds in the page."""
    script = f"new Promise(done => {{ const look = () => ({expression}) ? done(1) : setTimeout(look, 50); look(); }})"
    browser.evaluate(script)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["desktop, light", "phone, dark"])
def test_an_open_page_follows_the_run(browser: Browser, going: Path, served, width: int, dark: bool) -> None:
    url = served(going)
    browser.open(url, width=width, dark=dark)
    assert browser.evaluate("document.getElementById('live').innerText").startswith("Running")
    settings = "document.querySelector('#settings details')"
    browser.evaluate(f"{settings}.open = true; {settings}.scrollIntoView({{behavior: 'instant'}}); window.kept = 1")
    place = browser.evaluate(f"{settings}.getBoundingClientRect().top")
    sections = "document.querySelectorAll('main > *').length"
    before = browser.evaluate(sections)
    step = add_step(going, **{"policy/lambda_hat": 0.125})
    (going / "events.jsonl").write_text(
        json.dumps({"step": step, "action": "note", "taken": True, "text": "<b>a new event</b>"}) + "\n"
    )
    until(browser, f"document.getElementById('live').innerText.includes('{step} of 200')")
    until(browser, f"{sections} > {before}")  # the guard's section is new
    strip = browser.evaluate("document.getElementById('live').innerText")
    assert "+0.1250" in strip
    assert "<b>a new event</b>" in strip
    assert "time left" in strip
    hover = "JSON.parse(document.getElementById('figures').textContent)['policy-entropy'].lines[0].x.at(-1)"
    assert browser.evaluate(hover) == step
    assert browser.evaluate("window.kept") == 1  # never loaded again
    assert browser.evaluate(f"{settings}.open")
    assert browser.evaluate(f"{settings}.getBoundingClientRect().top") == pytest.approx(place, abs=1.5)
    browser.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shade = browser.evaluate("getComputedStyle(document.getElementById('live')).backgroundColor")
    assert (sum(map(int, shade[4:-1].split(","))) < 150) == dark
    assert browser.complaints() == []
    assert {request.removeprefix(url) for request in browser.requests()} <= {"", "status.json"} | {
        request for request in browser.requests() if request.startswith("data:")
    }


@pytest.mark.slow
def test_the_server_of_a_killed_run_ends_too(going: Path) -> None:
    code = "import sys, pathlib; from heliostat.report.live.process import WatchedRun\n\
watched = WatchedRun(lambda line: print(line, flush=True), 0); watched.start(pathlib.Path(sys.argv[1]))\n\
print(watched.process.pid, flush=True); sys.stdin.read()"
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(going)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    url = run.stdout.readline().split()[1]
    server = int(run.stdout.readline())
    assert ask(url, "/status.json")[0] == 200
    run.kill()
    run.communicate()
    while answers(url) or is_alive(server):  # until the test's time limit
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Return whether a process runs: one that is gone, or only not yet reaped, has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers(url: str) -> bool:
    try:
        return ask(url, "/favicon.ico")[0] == 404
    except (ConnectionError, HTTPException):  # gone, or gone in the middle of its answer
        return False
