"""The reference lists every public name, the navigation every page."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOMS = ("training", "objectives", "masks", "scoring", "data", "evaluation", "inspection", "playground")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_listed(room):
    module = importlib.import_module(f"sparsepo.{room}")
    text = (DOCS / "reference" / f"{room}.md").read_text(encoding="utf-8")
    missing = [name for name in module.__all__ if f".{name}\n" not in text and f"`{name}`" not in text]
    assert not missing, f"docs/reference/{room}.md lacks {', '.join(missing)}"
    for line in text.splitlines():
        if line.startswith("::: "):
            path, _, name = line.removeprefix("::: ").rpartition(".")
            assert hasattr(importlib.import_module(path), name), f"{room}.md names {line}"


def _pages(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from _pages(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    # mkdocs.yml holds no tags of Python, so the safe loader reads it
    config = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(_pages(config["nav"]))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    there |= {f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")} | {"reference/settings.md"}
    assert listed == there
