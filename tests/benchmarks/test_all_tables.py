"""The commands that make tables and plots go through everything with tiny sizes, and go on where they stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCORER = ("scorer.py", "--vocabulary", "300", "--hidden", "16", "--rounds", "2", "--filter", "fused")


def run(script, *arguments, expected=0):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, f"benchmarks/{script}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr[-3000:]
    return done


def found(path):
    return json.loads(path.with_suffix(".json").read_text())["results"]


def medians(results):
    return {(result["key"], row["variant"]): row["median"] for result in results for row in result["rows"]}


def cells_of_tables(text):
    """Number of cells of each line, by Markdown table."""
    tables = [[line for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")]
    counts = [[line.count("|") for line in lines] for lines in tables if lines]
    assert counts
    return counts


@pytest.mark.long
def test_one_command_writes_every_table_and_their_index(tmp_path):
    done = run("run_all.py", "--quick", "--clock", "cpu", "--output", tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert page in done.stdout
    for name in ("scorer_float32", "prefix_float32", "step_targets", "step_float32", "rows"):
        assert f"[{name}]({name}.md)" in page
        assert all(len(set(cells)) == 1 for cells in cells_of_tables((tmp_path / f"{name}.md").read_text()))
    assert "| step_bfloat16 |" in page  # listed, and not measured

    heads = {row["variant"] for row in found(tmp_path / "scorer_float32")[0]["rows"]}
    assert {"dense", "TRL composed (with KL)", "fused, 90 % zeros", "frozen head: cached reference"} <= heads
    routes = {row["variant"] for row in found(tmp_path / "prefix_float32")[0]["rows"]}
    assert routes == {"separate", "cache", "row", "auto"}
    (step,) = found(tmp_path / "step_float32")
    steps = {row["variant"] for row in step["rows"]}
    assert {"TRL DPO", "SparsePO", "SparsePO, TRL's kernels composed", "LoRA: SparsePO, scorer=dense"} <= steps
    assert all(row["median"] > 0 and row["peak_mib"] > 0 for row in step["rows"])
    left_out = {name for name, _ in step["left_out"]}
    assert ("LoRA: SparsePO, reference cached" in steps) != ("LoRA: SparsePO, reference cached" in left_out)

    before = medians(found(tmp_path / "step_float32"))
    run("run_all.py", "--quick", "--clock", "cpu", "--output", tmp_path, "--tables", "step_float32")
    assert medians(found(tmp_path / "step_float32")) == before


@pytest.mark.long
def test_tables_that_are_there_are_kept_and_new_ones_added(tmp_path):
    output = ("--output", tmp_path / "scorer")
    run(*SCORER, "--tokens", 4, *output)
    first = medians(found(tmp_path / "scorer"))
    run(*SCORER, "--tokens", 4, 6, *output)
    both = medians(found(tmp_path / "scorer"))
    assert both.items() >= first.items()
    assert len(both) == 2 * len(first)
    run(*SCORER, "--tokens", 4, "--fresh", *output)
    again = medians(found(tmp_path / "scorer"))
    assert again.keys() == both.keys()
    assert {key for key in first if again[key] != first[key]}
    done = run(*SCORER, "--hidden", 24, "--tokens", 4, *output, expected=1)  # ratios hold within a setting
    assert "another setting" in done.stderr
    run(*SCORER, "--hidden", 24, "--tokens", 4, *output, "--fresh")
    assert len(found(tmp_path / "scorer")) == 1


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plots_are_drawn_from_measurements_that_are_kept(tmp_path):
    sizes = ("--vocabulary", 300, "--hidden", 16, "--tokens", 8, "--output", tmp_path)
    run("plots.py", *sizes, "--lengths", 4, 8, "--rounds", 1)
    kept = {name: (tmp_path / f"{name}.json").read_bytes() for name in ("sparsity", "length")}
    for name in kept:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
        (tmp_path / f"{name}.png").unlink()
    run("plots.py", *sizes, "--rounds", 0)
    assert {name: (tmp_path / f"{name}.json").read_bytes() for name in kept} == kept
    assert all((tmp_path / f"{name}.png").exists() for name in kept)
