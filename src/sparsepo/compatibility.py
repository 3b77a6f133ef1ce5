"""Which versions of other libraries this version of sparsepo works with: read from its own requirements, checked once.

Imports nothing heavy, so that the answer comes before an ``AttributeError`` from the middle of another library does.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# Libraries whose private or fast-moving parts are used: on another version nothing begins
CORE = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")
# Set to 1: a version outside the range is a warning (to try a new release)
SWITCH = "SPARSEPO_ANY_VERSION"
# What the metadata would say, where sparsepo is run from its sources without being installed
_WITHOUT_METADATA = ("trl==1.16.0", "transformers>=5.23,<5.24")


@dataclass(frozen=True)
class Finding:
    """One library.

    Args:
        name: of the distribution.
        found: its version, or None where it is not installed.
        wanted: the accepted range, empty where any will do.
        is_right: whether it is there and in the range.
    """

    name: str
    found: str | None
    wanted: str
    is_right: bool

    @property
    def mend(self) -> str:
        """The command that mends it."""
        return f"pip install '{self.name}{self.wanted}'"

    def problem(self) -> str:
        """What is wrong, in one clause."""
        needed = f"{self.name}{self.wanted}" if self.wanted else self.name
        return f"needs {needed} and found {self.found or 'none'}"


def requirements(extra: str | None = None) -> list[Requirement]:
    """What sparsepo requires, or what one of its extras adds, as its installed metadata says."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("sparsepo") or []
    except importlib.metadata.PackageNotFoundError:
        lines = list(_WITHOUT_METADATA) if extra is None else []
    found = []
    for line in lines:
        requirement = Requirement(line)
        plain = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if plain == (extra is None) and (plain or requirement.marker.evaluate({"extra": extra or ""})):  # type: ignore[union-attr]
            found.append(requirement)
    return found


def finding(requirement: Requirement) -> Finding:
    """The installed version of a requirement, and whether it will do."""
    version = installed(requirement.name)
    is_right = version is not None and requirement.specifier.contains(version, prereleases=True)
    return Finding(requirement.name, version, str(requirement.specifier), is_right)


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions(names: tuple[str, ...] = CORE) -> None:
    """Refuse libraries of versions that sparsepo does not know.

    Raises:
        ImportError: some are outside the range; names each, what was found, and the command. With
            ``SPARSEPO_ANY_VERSION=1`` a warning instead.
    """
    wrong = [found for found in map(finding, requirements()) if found.name in names and not found.is_right]
    if not wrong:
        return
    packages = " ".join(f"'{found.name}{found.wanted}'" for found in wrong)
    message = (
        f"sparsepo {'; '.join(found.problem() for found in wrong)}. Install with `pip install {packages}`; "
        "`sparsepo doctor` shows every version."
    )
    if os.environ.get(SWITCH) == "1":
        warnings.warn(f"{message} Going on, since {SWITCH}=1.", stacklevel=2)
        return
    raise ImportError(f"{message} ({SWITCH}=1 tries it as it is.)")
