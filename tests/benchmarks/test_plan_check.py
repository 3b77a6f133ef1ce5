"""The comparison of plans with measured steps: it runs, with TRL and without, and what it measured on a GPU holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "plan_check.json"
WITHOUT_TRL = """
import importlib.util, runpy, sys
hidden, find = ("trl", "datasets"), importlib.util.find_spec
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in hidden else find(name, *rest)
sys.path.insert(0, "benchmarks")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tmp_path, *start, seconds="600"):
    command = [sys.executable, *start, "benchmarks/plan_check.py", "--tiny", "--seconds", seconds]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--output", str(tmp_path / "plan")], cwd=ROOT, env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "plan.json").read_text())


def within(found, share):
    for row in found["rows"]:
        assert "error" not in row["measured"], row
        assert row["planned"]["allocated"] == pytest.approx(row["measured"]["peak"], rel=share), row["title"]


def test_a_step_without_trl_takes_what_was_planned(tmp_path):
    found = run(tmp_path, "-c", WITHOUT_TRL, seconds="0.1")
    assert found["setting"].endswith("TRL not there")
    assert found["rows"]
    within(found, 0.1)


@pytest.mark.long
def test_tiny_models_on_a_cpu_take_what_was_planned(tmp_path):
    found = run(tmp_path)
    assert len(found["rows"]) == (14 if find_spec("bitsandbytes") else 8)
    within(found, 0.1)


def test_plans_of_measured_runs_lie_within_two_percent():
    found = json.loads(RESULTS.read_text())
    assert len(found["rows"]) >= 28
    within(found, 0.02)
    for row in found["rows"]:
        held, static = row["measured"]["held"], row["planned"]["static"]
        for part in ("weights", "reference", "gradients"):
            assert static[part] == pytest.approx(held[part], rel=0.01), (row["title"], part)
