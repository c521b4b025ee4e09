"""The promise: the documentation builds, says what the code declares, and every link in it leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)[^)]*\)")
REQUEST = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"[^>]*>')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]  # --quiet would hide warnings
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_generated_pages_are_up_to_date():
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


def test_generated_pages_leave_nothing_out():
    from heliostat.config import describe_keys
    from heliostat.objectives.registry import OBJECTIVES
    from heliostat.tracking import METRICS

    reference = ROOT / "docs" / "reference"
    settings, metrics = ((reference / name).read_text() for name in ("settings.md", "metrics.md"))
    assert [key.name for key in describe_keys() if f"`{key.name}`" not in settings] == []
    assert [name for name in OBJECTIVES if f"| `{name}` |" not in settings] == []
    assert [name for name in METRICS if f"| `{name}` |" not in metrics] == []


def test_the_loop_that_is_shown_is_the_loop_that_runs(site):
    """The page's listings come from the source while the site is built."""
    import html
    import inspect

    from heliostat.train.trainer import Trainer

    shown = html.unescape(re.sub(r"<[^>]*>", "", (site / "explanation" / "how-it-works" / "index.html").read_text()))
    for part in (Trainer.train, Trainer.step):
        for line in inspect.getsource(part).splitlines():
            assert line.strip() in shown, line
    assert "{{ source" not in shown


def test_a_listing_of_a_name_that_is_gone_ends_the_build(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import source_code

    assert "def step" in source_code.on_page_markdown("{{ source heliostat.train.trainer.Trainer.step }}")
    with pytest.raises(AttributeError):
        source_code.on_page_markdown("{{ source heliostat.train.trainer.Trainer.gone }}")


def test_every_page_is_in_the_site(site):
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).with_suffix("").as_posix().removesuffix("/index") for path in docs.rglob("*.md")}
    pages.remove("index")
    assert [page for page in pages if not (site / page / "index.html").is_file()] == []
    navigation = (site / "index.html").read_text()
    assert [page for page in pages if f'href="{page}/"' not in navigation] == []


def test_every_page_is_of_one_kind():
    docs = ROOT / "docs"
    kinds = {"tutorials", "how-to", "reference", "explanation", "studies"}
    pages = {path.relative_to(docs) for path in docs.rglob("*.md")}
    assert {page.parts[0] for page in pages} == {*kinds, "index.md"}


@pytest.mark.parametrize(
    "text",
    [
        "[no page](missing.md)",
        "[no heading](index.md#missing)",
        "![no picture](missing.png)",
        "[absolute](/reference/)",
    ],
)
def test_the_build_fails_where_a_link_leads_nowhere(text, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{text}\n")
    config = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nnav: [index.md]\nhooks: []\nplugins: [search]\n"
    (tmp_path / "mkdocs.yml").write_text(config)
    command = [sys.executable, "-m", "mkdocs", "build", "-d", str(tmp_path / "site")]  # strict as mkdocs.yml says
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1
    assert "Aborted with 1 warnings in strict mode!" in done.stdout + done.stderr


def test_every_example_run_has_its_page(site):
    runs = [path.name for path in (ROOT / "docs" / "examples").iterdir()]
    assert runs
    for run in runs:
        page = (site / "examples" / run / "report.html").read_text()
        assert "<title>" in page
        assert f'href="examples/{run}/report.html"' in (site / "index.html").read_text()


def test_formulas_are_drawn_by_the_browser_itself(site):
    html = {path: path.read_text() for path in site.rglob("*.html")}
    assert [path for path, text in html.items() if 'class="arithmatex"' in text] == []
    pages = ("explanation/theory", "explanation/scaling", "reference/objectives", "how-to/inverse-decomposition")
    assert [page for page in pages if "<math" not in html[site / page / "index.html"]] == []


def test_pages_ask_no_other_server_for_anything(site):
    found = {path.name: REQUEST.findall(path.read_text()) for path in site.rglob("*.html")}
    assert {page: requests for page, requests in found.items() if requests} == {}


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_pages_outside_the_site_lead_somewhere(page):
    assert [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (ROOT / link).exists()] == []


def test_the_link_check_finds_links():
    text = "[a](docs/x.md#part) ![b](c.png) [d](https://e.f) [g](#here)"
    assert LINK.findall(text) == ["docs/x.md", "c.png"]
    assert REQUEST.findall('<link rel="stylesheet" href="https://fonts.example/x.css">')
    assert not REQUEST.findall('<a href="https://example.org">')


def test_the_map_for_contributors_names_files_that_are_there():
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| the ")]
    places = [path for row in rows for path in re.findall(r"`([\w/]+\.py)`", row)]
    assert len(rows) >= 6
    assert [path for path in places if not (ROOT / "src" / "heliostat" / path).is_file()] == []
