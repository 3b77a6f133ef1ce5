"""``--accelerate_config``: which file, what the shipped ones hold, and two real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from sparsepo.cli import launching
from sparsepo.cli.base import CliError
from sparsepo.cli.launching import accelerate_config_path, is_launched, refuse_sharding_on_cpu
from tests.cli.conftest import SHORT_RUN

OURS = ("ddp", "fsdp2", "zero2", "zero3")


def test_names_and_files(tmp_path: Path) -> None:
    assert "trl" in Path(accelerate_config_path("multi_gpu")).parts
    assert "sparsepo" in Path(accelerate_config_path("fsdp2")).parts  # ours before TRL's of the same name
    (tmp_path / "own.yaml").write_text("")
    assert accelerate_config_path(str(tmp_path / "own.yaml")) == str(tmp_path / "own.yaml")
    with pytest.raises(CliError, match=r"neither a file nor one of ddp, fsdp2.*did you mean zero3\?"):
        accelerate_config_path("zero_3")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [\n", "\xff"])
def test_files_that_are_no_configuration(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CliError, match=r"own\.yaml"):
        refuse_sharding_on_cpu(str(path), use_cpu=True)


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3"])
def test_sharding_on_a_cpu_is_refused(name: str) -> None:
    with pytest.raises(
        CliError, match=r"shards with (FSDP|DEEPSPEED), which needs an accelerator: --use_cpu was given"
    ):
        refuse_sharding_on_cpu(accelerate_config_path(name), use_cpu=True)
    refuse_sharding_on_cpu(accelerate_config_path("ddp"), use_cpu=True)


def test_a_configuration_that_would_start_one_process_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpu.yaml"
    path.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    with pytest.raises(CliError, match=r"starts one process.*--use_cpu --accelerate_config ddp"):
        refuse_sharding_on_cpu(str(path), use_cpu=True)


def test_a_configuration_without_a_number_asks_for_one_on_a_cpu() -> None:
    with pytest.raises(CliError, match=r"how many processes\? Give --num_processes"):
        launching.launch("train", [], "ddp", use_cpu=True)


def launched_environment(name: str) -> dict[str, str]:
    """What accelerate's own launcher makes of a configuration, with 2 processes."""
    arguments = launch_command_parser().parse_args(
        ["--config_file", accelerate_config_path(name), "--num_processes", "2", "script.py"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # as the launcher sets it next
        return dict(prepare_deepspeed_cmd_env(arguments)[1])
    return dict(prepare_multi_gpu_env(arguments))


@pytest.mark.parametrize("name", OURS)
def test_accelerate_reads_the_shipped_configurations(name: str) -> None:
    config = load_config_from_file(accelerate_config_path(name))
    assert config.num_processes == -1  # the command line's, or one a device
    content = yaml.safe_load(Path(accelerate_config_path(name)).read_text())
    assert content["distributed_type"] == config.distributed_type.value


def test_the_fsdp_configuration_makes_the_plugin_that_the_tests_run_with() -> None:
    from tests.training.fsdp_on_cpu import ENVIRONMENT

    environment = launched_environment("fsdp2")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    shared = {key: value for key, value in ENVIRONMENT.items() if "EFFICIENT" not in key}
    assert {key: environment[key].lower() for key in shared} == {key: value.lower() for key, value in shared.items()}
    with patch.dict(os.environ, environment):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_the_deepspeed_configurations_make_a_plugin(name: str, stage: int) -> None:
    """DeepSpeed itself is not needed for that; what its engine does with it is not tested here."""
    environment = launched_environment(name)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    with patch.dict(os.environ, environment):
        plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    settings = plugin.deepspeed_config["zero_optimization"]
    assert settings["stage"] == stage
    assert bool(settings["stage3_gather_16bit_weights_on_model_save"]) is (stage == 3)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({launching.LAUNCHED: "1"}, True), ({"LOCAL_RANK": "0", "RANK": "8"}, True)],
)
def test_processes_that_were_started_do_not_start_more(variables: dict[str, str], expected: bool) -> None:
    with patch.dict(os.environ, variables):
        for name in (launching.LAUNCHED, "LOCAL_RANK"):
            if name not in variables:
                os.environ.pop(name, None)
        assert is_launched() is expected


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
