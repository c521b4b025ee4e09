"""The promise: what the page on installing, the Dockerfile and the package's metadata say is so."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGE = (ROOT / "docs" / "how-to" / "install.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ROW = re.compile(r"^\| `([\w-]+)` \| (.+?) \| ?(.*?) ?\|$", re.MULTILINE)


def label(line: str) -> str:
    requirement = Requirement(line)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return requirement.name + extras


def test_the_table_of_extras_is_that_of_the_package():
    shown = {extra: packages.strip() for extra, _, packages in ROW.findall(PAGE)}
    extras = PROJECT["optional-dependencies"]
    assert shown.keys() == extras.keys()
    for extra in extras.keys() - {"all", "dev"}:
        assert shown[extra].split(", ") == [label(line) for line in extras[extra]], extra


def test_all_is_what_the_page_says():
    parts = set(re.search(r"\[(.*)\]", PROJECT["optional-dependencies"]["all"][0])[1].split(","))
    left_out = {"wandb", "trackio", "lm-eval", "mujoco", "peers", "linalg-peers", "dev", "all"}
    assert parts == PROJECT["optional-dependencies"].keys() - left_out
    assert "all but `wandb`, `trackio`, `lm-eval`, `mujoco`, the two of peers and `dev`" in PAGE


def test_a_package_index_shows_no_broken_link():
    """An index shows the description alone, so whatever it links to must be an address."""
    text = (ROOT / PROJECT["readme"]).read_text()
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    assert targets
    assert [target for pair in targets for target in pair if target and not target.startswith("https://")] == []


def test_the_description_names_the_versions_of_the_classifiers():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert len(named) > 1
    phrase = f"Python {', '.join(named[:-1])} and {named[-1]}"
    assert phrase in (ROOT / PROJECT["readme"]).read_text()
    assert phrase.replace(" and ", " or ") in PAGE
    assert PROJECT["requires-python"] == f">={named[0]}"


@pytest.mark.parametrize("line", re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE))
def test_the_image_copies_files_that_reach_the_daemon(line):
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    *sources, _ = line.split()
    for source in sources:
        assert (ROOT / source).exists()
        assert source in allowed


def test_the_image_holds_what_the_wheel_is_built_of():
    copied = set(" ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)).split())
    assert copied >= {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "src", "constraints.txt"}


def test_the_image_runs_heliostat_as_a_plain_user():
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert re.findall(r"^USER (\w+)$", last, re.MULTILINE) == ["heliostat"]
    assert last.rstrip().endswith('ENTRYPOINT ["heliostat"]')
    versions = set(re.findall(r"^FROM python:(\d\.\d+)", DOCKERFILE, re.MULTILINE))
    assert {f"Programming Language :: Python :: {version}" for version in versions} <= set(PROJECT["classifiers"])
    assert len(versions) == 1, "the copied environment belongs to one interpreter"
