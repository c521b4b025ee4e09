from __future__ import annotations

import json
from pathlib import Path

from heliostat.report import write_report
from heliostat.report.sections.events import MAX_LISTED
from tests.unit.report.browser import Browser
from tests.unit.report.synthetic import Shape, make_run

HOSTILE = "<img src=x onerror=alert(1)> the reward fell"


def guarded_run(folder: Path, num_events: int = 5) -> Path:
    """A run with everything the guard writes: events, a target, a panel, loops in its transcripts."""
    run = make_run(folder, Shape(num_steps=120), text="I think that the answer is so I think that the answer is " * 12)
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["step"] > 0:
            row |= {"guard/entropy_target": 0.3, "guard/output": 0.4, "mismatch/k3": 1e-9, "text/loops": 0.1,
                    "text/rep4": 0.2, "answers/distinct_correct": 1.5, "answers/effective": 2.0}  # fmt: skip
        if row["step"] > 0 and row["step"] % 50 == 0:
            row |= {"panel/pass@1": 0.4, "panel/pass@k": 0.8, "panel/information": 1.2, "panel/calibration": -0.1}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    actions = ("note", "rollback", "went back", "adjust", "stop")
    events = [
        {"step": 20 + index, "action": actions[index % 5], "taken": index % 2 == 0, "text": f"{HOSTILE} {index}"}
        for index in range(num_events)
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_without_events_there_is_no_timeline(finished: Path, tmp_path: Path) -> None:
    page = write_report([finished], tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="events"' not in page
    assert 'id="wall"' in page


def test_a_long_story_is_cut_from_its_beginning(tmp_path: Path) -> None:
    page = write_report([guarded_run(tmp_path / "run", 100)]).read_text(encoding="utf-8")
    assert f"The last {MAX_LISTED} of 100 events." in page
    assert page.count("<li><span") == MAX_LISTED


def test_the_guards_sections_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    run = guarded_run(tmp_path / "run")
    page = write_report([run])
    for width in (360, 1280):
        browser.open(page, width=width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        outside = browser.evaluate(
            "[...document.querySelectorAll('#events *, #wall *, #target *')].filter(node => !node.closest('pre')"
            f" && node.getBoundingClientRect().right > {width} + 0.5).map(node => node.outerHTML.slice(0, 80))"
        )
        assert outside == []
    assert browser.evaluate("document.querySelectorAll('#events circle.mark').length") == 5
    assert browser.evaluate("document.querySelectorAll('#events circle.hollow').length") == 2
    assert browser.evaluate("document.querySelector('#events li').textContent").endswith(f"{HOSTILE} 0")
    assert browser.evaluate("document.querySelectorAll('#wall .looping').length") == 8
    assert browser.evaluate("document.querySelectorAll('#wall mark').length") >= 8
    band = "document.querySelector('#chart-entropy-band .band').getBoundingClientRect().height"
    assert browser.evaluate(band) > 5
    assert browser.evaluate("document.querySelectorAll('#chart-coverage .dot').length") == 4
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
