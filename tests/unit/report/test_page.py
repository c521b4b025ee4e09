"""The file that is written: whole, alone, bounded in size, and honest about what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heliostat.config import ConfigError
from heliostat.report import write_report
from heliostat.report.runs.read import CONSEQUENCES
from tests.unit.report.synthetic import Shape, make_run


class Addresses(HTMLParser):
    """Everything on a page that a browser might fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found = re.findall(r"url\([^)]*\)|@import[^;]*|https?:[^\s\"']*", page)
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            fetched = name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "ping", "background")
            if fetched and not (value or "").startswith(("#", "data:,")):
                self.found.append(f"{name}={value}")


def test_the_page_lies_in_the_first_run_unless_told_otherwise(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Shape(num_steps=5))
    (tmp_path / "folder").mkdir()
    assert write_report([run]) == run / "report.html"
    assert write_report([run], tmp_path / "folder") == tmp_path / "folder" / "report.html"
    page = write_report([run], tmp_path / "new" / "page.html")
    assert page.read_bytes() == (run / "report.html").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Shape(num_steps=30))
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first


def test_a_folder_that_is_no_run_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        write_report([tmp_path])
    with pytest.raises(ValueError, match="at least one run folder"):
        write_report([])
    assert list(tmp_path.iterdir()) == []


def test_the_page_points_to_nothing_outside_itself(finished: Path, tmp_path: Path) -> None:
    page = write_report([finished], tmp_path / "page.html").read_text(encoding="utf-8")
    assert Addresses(page).found == []
    assert Addresses('<img src="x.png"><a href="//x"><style>a{b:url(x)}</style>').found == [
        "url(x)",
        "src=x.png",
        "href=//x",
    ]


@pytest.mark.slow
def test_a_thousand_steps_stay_below_300_kilobytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", Shape(num_steps=1000))
    assert write_report([run]).stat().st_size < 300_000


@pytest.mark.slow
def test_a_long_page_is_written_over_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", Shape(num_steps=1000))
    page = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == page
    (run / "report.html").write_text("<title>Mine</title> Written by somebody else.")
    with pytest.raises(ConfigError, match="is not a page of Heliostat"):
        write_report([run])


@pytest.mark.parametrize("name", list(CONSEQUENCES))
def test_any_single_file_is_enough_for_a_page_that_says_what_is_missing(
    finished: Path, tmp_path: Path, name: str
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / name).write_bytes((finished / name).read_bytes())
    page = write_report([alone]).read_text(encoding="utf-8")
    assert "What this page could not read" in page
    assert page.count(" is absent: ") == len(CONSEQUENCES) - 1


def test_empty_files_are_survived(tmp_path: Path) -> None:
    for name in CONSEQUENCES:
        (tmp_path / name).touch()
    page = write_report([tmp_path]).read_text(encoding="utf-8")
    assert "No held-out evaluation was recorded" in page


def test_a_killed_run_says_where_it_stood(killed: Path) -> None:
    page = write_report([killed]).read_text(encoding="utf-8")
    assert "Still running, or killed: 69 of 200 steps are in the log." in page
    assert "at step 60, the last evaluation before the run stopped" in page


def test_hostile_text_everywhere_stays_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    run = make_run(tmp_path / "x<script>alert(2)</script>".replace("/", "∕"), Shape(num_steps=5), text=hostile)
    (run / "versions.json").write_text('{"cpu": "<script>alert(3)</script>"}')
    page = write_report([run]).read_text(encoding="utf-8")
    assert page.count("<script") == 2  # the page's data and the page's own script
    assert page.count("</script>") == 2
    assert page.count('class="conversation"') > 2, "of completions and of trajectories"


def test_lone_surrogates_do_not_stop_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Shape(num_steps=5), text="\ud800")
    (run / "versions.json").write_text('{"cpu": "\\ud800"}')
    (run / "summary.json").write_text('{"status": "failed", "reason": "\\udfff"}')
    write_report([run]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_many_runs_fit_one_page(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{seed}", Shape(num_steps=60, seed=seed)) for seed in range(8)]
    page = write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "8 runs compared" in page
    assert all(f"run{seed}" in page for seed in range(8))
