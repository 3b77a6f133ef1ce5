"""``--accelerate_config``: which file, and two real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsepo.cli.base import CliError
from sparsepo.cli.launching import accelerate_config_path, refuse_sharding_on_cpu
from tests.cli.conftest import SHORT_RUN


def test_names_and_files(tmp_path: Path) -> None:
    assert Path(accelerate_config_path("multi_gpu")).read_text().startswith("compute_environment")
    (tmp_path / "own.yaml").write_text("")
    assert accelerate_config_path(str(tmp_path / "own.yaml")) == str(tmp_path / "own.yaml")
    with pytest.raises(CliError, match=r"neither a file nor one of fsdp1, fsdp2.*did you mean zero3\?"):
        accelerate_config_path("zero_3")


@pytest.mark.parametrize("name", ["fsdp1", "fsdp2", "zero2", "zero3"])
def test_sharding_on_a_cpu_is_refused(name: str) -> None:
    with pytest.raises(
        CliError, match=r"shards with (FSDP|DEEPSPEED), which needs an accelerator: --use_cpu was given"
    ):
        refuse_sharding_on_cpu(accelerate_config_path(name), use_cpu=True)
    refuse_sharding_on_cpu(accelerate_config_path("multi_gpu"), use_cpu=True)


def test_two_processes(tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    config = tmp_path / "cpu.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 3\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {model_folder}\naccelerate_config: {config}\n")
    command = [
        *(sys.executable, "-m", "sparsepo.cli.main", "train", "--config", recipe, "--num_processes", "2"),
        *("--dataset_name", pairs_file, "--output_dir", tmp_path / "out", *SHORT_RUN),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Saved in") == 1  # one process speaks
    summary = json.loads((tmp_path / "out" / "train_summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["metrics"]["training (last logged)"]["epoch"] == 1  # 2 processes × 4 pairs × 2 steps = 16 pairs
