"""Every relative link of the pages leads somewhere, and every file of the project that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FOLDERS = "src|tests|recipes|benchmarks|docs|objectives|masks|scoring|training|data|cli"
NAMED = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|yaml|md))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in NAMED.findall(text):
        assert (ROOT / name).exists() or (ROOT / "src" / "sparsepo" / name).exists(), f"{page.name} names {name}"
