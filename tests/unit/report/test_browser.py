"""The page in a real browser: it draws, fits a phone, follows the theme, runs nothing foreign, asks for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from heliostat.report import write_report
from tests.unit.report.browser import Browser
from tests.unit.report.synthetic import Shape, kill, make_run


@pytest.fixture(scope="module")
def pages(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of one run, of three runs, and of a killed run."""
    root = tmp_path_factory.mktemp("pages")
    other = make_run(root / "a-run-with-a-rather-long-name-0123456789", Shape(tau=0.05, seed=1, end=0.7))
    stopped = kill(make_run(root / "killed", Shape(seed=3)))
    return {
        "one": write_report([finished], root / "one.html"),
        "several": write_report([finished, other, stopped], root / "several.html"),
        "killed": write_report([stopped], root / "killed.html"),
    }


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server that remembers who asked for what."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()


def centre(browser: Browser, selector: str) -> tuple[float, float]:
    """Where an element's middle is, after scrolling to it."""
    x, y = browser.evaluate(
        f"(() => {{ const node = document.querySelector({selector!r});"
        "node.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    return x, y


def click(browser: Browser, selector: str) -> None:
    x, y = centre(browser, selector)
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@pytest.mark.parametrize("name", ["one", "several", "killed"])
def test_charts_are_drawn_without_a_complaint_or_a_request(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    sizes = browser.evaluate(
        "[...document.querySelectorAll('.plot .data .line')].map(path => path.getBoundingClientRect().width)"
    )
    assert len(sizes) >= 15
    assert sum(width > 100 for width in sizes) >= 0.9 * len(sizes)
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]


@pytest.mark.parametrize("name", ["one", "several", "killed"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    browser.open(pages[name], width=width)
    browser.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width
    # Only tables and long words may scroll, and only inside their own box.
    outside = browser.evaluate(
        "[...document.querySelectorAll('main *')].filter(node => !node.closest('.scroll, pre, nav')"
        f" && node.getBoundingClientRect().right > {width} + 0.5).map(node => node.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_labels_of_an_axis_do_not_overlap_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], width=360)
    overlaps = browser.evaluate(
        "[...document.querySelectorAll('.xlabels, .ylabels')].flatMap(group => {"
        " const boxes = [...group.children].map(node => node.getBoundingClientRect());"
        " return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => a.left < b.right && b.left < a.right"
        " && a.top + 1 < b.bottom && b.top + 1 < a.bottom)); }).length"
    )
    assert overlaps == 0
    assert browser.evaluate("document.querySelectorAll('.ylabels text').length") > 50


def test_the_theme_follows_the_system_and_the_button(browser: Browser, pages: dict[str, Path]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    browser.open(pages["one"], dark=False)
    light = browser.evaluate(background)
    browser.open(pages["one"], dark=True)
    dark = browser.evaluate(background)
    assert light != dark
    assert sum(map(int, dark[4:-1].split(","))) < 150 < sum(map(int, light[4:-1].split(",")))
    click(browser, "#theme")
    assert browser.evaluate(background) == light
    click(browser, "#theme")
    assert browser.evaluate(background) == dark
    assert browser.complaints() == []
    browser.evaluate("localStorage.clear()")


def test_hovering_and_arrow_keys_show_logged_values(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"])
    x, y = centre(browser, "#chart-policy-entropy .plot")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tip = "document.querySelector('#chart-policy-entropy .tip')?.innerText"
    step, value = browser.evaluate(tip).split("\n")
    number = int(step.removeprefix("step "))
    assert number in (100, 101)  # the middle of steps 1 to 200
    data = "JSON.parse(document.getElementById('figures').textContent)['policy-entropy'].lines[0]"
    logged = browser.evaluate(f"{data}.y[{data}.x.indexOf({number})]")
    assert value == f"Entropy: {logged:.4g}"
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert browser.evaluate(tip) is None
    browser.evaluate("document.querySelector('#chart-policy-entropy .plot').focus()")
    seen = []
    for key in ("End", "ArrowLeft", "ArrowLeft", "Home"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        seen.append(browser.evaluate(tip).split("\n")[0])
    assert seen == ["step 200", "step 199", "step 198", "step 1"]
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert browser.evaluate(tip) is None


def test_a_run_is_hidden_and_shown_by_its_key(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    visible = (
        "[...document.querySelectorAll('.data .run1')].filter(path => getComputedStyle(path).display !== 'none').length"
    )
    everything = browser.evaluate(visible)
    assert everything > 15
    click(browser, "button[data-run='1']")
    assert browser.evaluate(visible) == 0
    assert browser.evaluate("document.querySelector(\"button[data-run='1']\").getAttribute('aria-pressed')") == "false"
    click(browser, "button[data-run='1']")
    assert browser.evaluate(visible) == everything


def test_the_page_reads_without_scripts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], width=360, scripts=False)
    document = browser.call("DOM.getDocument", depth=-1)
    found = browser.call("DOM.getOuterHTML", nodeId=document["root"]["nodeId"])["outerHTML"]
    assert found.count('class="line ') >= 15
    assert "It got better" in found
    assert 'id="theme" type="button" hidden' in found
    assert browser.complaints() == []


def test_hostile_transcripts_run_nothing_and_ask_for_nothing(
    browser: Browser, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    hostile = (
        f'</script><script>document.title="owned"; fetch("{address}/fetch")</script>'
        f'<img src="{address}/image" onerror="document.title=\'owned\'"><svg onload="document.title=\'owned\'">'
        f"<style>@import url({address}/style);</style></pre>-->]]><link rel=stylesheet href={address}/link>"
    )
    run = make_run(tmp_path / "hostile", Shape(num_steps=30), text=hostile)
    browser.open(write_report([run]))
    assert browser.evaluate("document.title") == "hostile · Heliostat"
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert (
        browser.evaluate("document.querySelectorAll('img, iframe, object, embed, main link, main style').length") == 0
    )
    assert browser.evaluate("document.querySelector('pre.completion').textContent") == hostile
    assert browser.evaluate("document.querySelectorAll('.plot .data .line').length") >= 15
    assert browser.complaints() == []
    assert asked == []


def test_the_content_policy_stops_what_escaping_would_have_missed(
    browser: Browser, finished: Path, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    page = write_report([finished], tmp_path / "page.html")
    attack = (
        f'<script>document.title="owned"</script><img src="{address}/image"><div onclick="1" id="late"></div></main>'
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", attack), encoding="utf-8")
    browser.open(page)
    assert browser.evaluate("document.title") == "demo · Heliostat"
    assert asked == []
    assert len(browser.complaints()) >= 2
    # The same attack on a page without a policy does run and does ask: this test can fail.
    page.write_text(f"<title>plain</title><main>{attack}", encoding="utf-8")
    browser.open(page)
    assert browser.evaluate("document.title") == "owned"
    assert asked == ["/image"]


def test_what_can_be_focused_has_a_name(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["several"])
    nameless = browser.evaluate(
        "[...document.querySelectorAll('[tabindex], button, a, [role=img]')]"
        ".filter(node => !(node.getAttribute('aria-label') || node.textContent).trim()).length"
    )
    assert nameless == 0
    assert browser.evaluate("document.querySelectorAll('.plot[tabindex][aria-label]').length") >= 15
    assert browser.evaluate("document.documentElement.lang") == "en"
    identifiers = browser.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(set(identifiers)) == len(identifiers)
    targets = browser.evaluate("[...document.querySelectorAll('a')].map(node => node.getAttribute('href').slice(1))")
    assert targets
    assert set(targets) <= set(identifiers)
