"""The one command of the GPU measurements goes through all its parts, and through those that need no TRL without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TRL = """
import runpy, sys
for name in ("trl", "peft", "datasets", "transformers"):
    sys.modules[name] = None
sys.path.insert(0, "benchmarks")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tmp_path, *start):
    command = [sys.executable, *start, "benchmarks/gpu.py", "--tiny", "--output", str(tmp_path / "gpu")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()


def names(results):
    return {row["variant"] for result in results for row in result["rows"]}


@pytest.mark.long
def test_every_part_is_measured(tmp_path):
    found, text = run(tmp_path)
    parts = found["parts"]
    assert "| torch, 16 rows" in parts["rows"][0]["text"]
    assert {"dense", "fused", "TRL DPO (no KL)", "fused, rows torch"} <= names(parts["scorer"])
    assert {"TRL DPO", "SparsePO", "SparsePO, scorer=dense", "SparsePO, 80 % zeros"} <= names(parts["pythia"])
    assert {"LoRA: TRL DPO", "LoRA: SparsePO", "LoRA: SparsePO, kl_anchor=0.1"} <= names(parts["llama"])
    for result in (*parts["scorer"], *parts["pythia"], *parts["llama"]):
        assert all(row["median"] > 0 for row in result["rows"])
        assert result["text"] in text


@pytest.mark.long
def test_without_trl_our_part_is_measured_and_the_rest_is_named(tmp_path):
    found, text = run(tmp_path, "-c", WITHOUT_TRL)
    assert {"dense", "fused"} <= names(found["parts"]["scorer"])
    assert not any("TRL" in name for name in names(found["parts"]["scorer"]))
    assert found["parts"]["pythia"] == []
    assert "Left out: pythia" in text
    assert "Left out: TRL's heads" in text


def test_an_unknown_variant_is_refused_and_the_known_ones_named(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_steps import GEOMETRIES, step_variants

    with pytest.raises(SystemExit, match=r"--variants SparsePO: not measured there; choose among LoRA: TRL DPO"):
        step_variants(GEOMETRIES["llama"], ["SparsePO"])
    assert set(step_variants(GEOMETRIES["pythia"], ["SparsePO"])) == {"SparsePO"}
