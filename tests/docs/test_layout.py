"""Who may import whom, as docs/architecture.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "sparsepo"
# What each part may import of the others
ALLOWED: dict[str, set[str]] = {
    "objectives": set(),
    "masks": {"objectives"},
    "scoring": {"objectives", "masks"},
    "data": set(),
    "evaluation": {"objectives", "masks", "scoring", "data"},
    "inspection": {"objectives", "masks", "data", "evaluation"},
    "playground": {"objectives", "masks", "evaluation"},
    "training": {"objectives", "masks", "scoring", "data"},
    "experiments": {"objectives", "masks", "scoring", "data", "evaluation", "inspection", "playground", "training"},
}


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports by their full names, also inside functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "sparsepo":
                names = [f"sparsepo.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("sparsepo.")}
    return parts & {*ALLOWED, "cli"}


@pytest.mark.parametrize("part", list(ALLOWED))
def test_parts_import_only_what_they_may(part: str) -> None:
    files = list((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        excess = imported(path) - ALLOWED[part] - {part}
        assert not excess, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(excess))}"


def test_every_part_is_known() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts == {*ALLOWED, "cli"}
