"""The code of the pages that teach extending is run as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from sparsepo.masks import MASKS
from sparsepo.objectives import OBJECTIVES

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def restored_registries():
    """What a page adds is gone after the test."""
    before = [(registry, dict(registry)) for registry in (MASKS, OBJECTIVES)]
    yield
    for registry, known in before:
        registry.clear()
        registry.update(known)


@pytest.mark.parametrize("page", ["adding_an_objective.md", "adding_a_mask.md"])
def test_worked_example_runs(page, restored_registries, monkeypatch):
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(blocks) == 3
    module = types.ModuleType(Path(page).stem)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look up their names
    for block in blocks:
        exec(compile(block, page, "exec"), vars(module))
    assert module.trainer.state.global_step == 3
