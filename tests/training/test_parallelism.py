"""What cannot be spread over devices is refused before models are loaded and rows prepared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import BitsAndBytesConfig

from sparsepo import SparsePOTrainer
from sparsepo.training import parallelism
from sparsepo.training.parallelism import refuse_parallelism, refuse_quantisation, refuse_unsharded_run
from tests.support import preference_rows, tiny_model, tiny_tokenizer

from .fsdp_on_cpu import ENVIRONMENT
from .running import run_config


def use_fsdp(monkeypatch: pytest.MonkeyPatch, version: str = "2") -> None:
    for name, value in {**ENVIRONMENT, "FSDP_VERSION": version}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("axis", ["tp_size", "cp_size", "sp_size"])
def test_axes_that_split_a_pair_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, axis: str) -> None:
    """As `accelerate launch --use_parallelism_config` hands them over, and before the model is looked at."""
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{axis.upper()}", "2")
    with pytest.raises(ValueError, match=f"{axis}=2 is not supported: .* parallelism splits"):
        SparsePOTrainer("nowhere/no-model", args=run_config(tmp_path), train_dataset=preference_rows(2))


def test_sharding_and_replicas_of_the_data_are_not(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "4")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2")
    refuse_parallelism(run_config(tmp_path), learned=True)


@pytest.mark.parametrize("name", ["tp_plan", "distributed_config"])
def test_models_that_are_split_while_loading(tmp_path: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"model_init_kwargs has {name}='auto', which splits a model"):
        refuse_parallelism(run_config(tmp_path, model_init_kwargs={name: "auto"}), learned=False)


def test_deepspeed_takes_only_masks_without_training(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    refuse_parallelism(config, learned=False)
    with pytest.raises(ValueError, match="A learned mask does not work under DeepSpeed: its engine clips"):
        refuse_parallelism(config, learned=True)


@pytest.mark.parametrize(
    ("settings", "learned", "message"),
    [
        ({"fp16": True}, True, "fp16=True with a learned mask does not work under FSDP2.*bf16=True"),
        ({"sync_ref_model": True}, False, "sync_ref_model=True does not work under FSDP2"),
    ],
)
def test_settings_that_fsdp2_cannot_serve(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], learned: bool, message: str
) -> None:
    config = run_config(tmp_path)
    for name, value in settings.items():
        setattr(config, name, value)
    refuse_parallelism(config, learned)
    use_fsdp(monkeypatch)
    with pytest.raises(ValueError, match=message):
        refuse_parallelism(config, learned)


def test_fsdp_of_version_1(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path)
    use_fsdp(monkeypatch)
    refuse_parallelism(config, learned=True)
    use_fsdp(monkeypatch, version="1")
    with pytest.raises(ValueError, match=r"FSDP version 1 is not supported.*fsdp_version: 2"):
        refuse_parallelism(config, learned=False)


def test_a_run_that_would_not_be_sharded_does_not_go_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU accelerate would run DDP with whole models, without a word."""
    config = run_config(tmp_path)
    several = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU)
    refuse_unsharded_run(config, several)
    use_fsdp(monkeypatch)
    with pytest.raises(ValueError, match="FSDP is asked for and accelerate runs MULTI_CPU: it shards on accelerators"):
        refuse_unsharded_run(config, several)
    refuse_unsharded_run(config, SimpleNamespace(num_processes=2, distributed_type=DistributedType.FSDP))


def four_bit(**settings: Any) -> Any:
    """The settings alone: BitsAndBytesConfig asks for the library's version."""
    config = object.__new__(BitsAndBytesConfig)
    defaults = {"_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_quant_storage": torch.uint8}
    config.__dict__.update({**defaults, **settings})
    return config


def test_without_bitsandbytes_the_trainer_says_so_first(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallelism, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="load_in_4bit=True needs bitsandbytes, which is not installed"):
        SparsePOTrainer(
            "nowhere/no-model",
            args=run_config(tmp_path),
            train_dataset=preference_rows(2),
            quantization_config=four_bit(),
        )


def test_quantised_weights_that_fsdp2_would_not_shard(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path)
    monkeypatch.setattr(parallelism, "refuse_missing_bitsandbytes", lambda bits: None)
    for quantised in (None, four_bit(), four_bit(_load_in_4bit=False, _load_in_8bit=True)):
        refuse_quantisation(quantised, config)
    use_fsdp(monkeypatch)
    refuse_quantisation(None, config)
    refuse_quantisation(four_bit(bnb_4bit_quant_storage=torch.bfloat16), config)
    with pytest.raises(ValueError, match=r"bnb_4bit_quant_storage=uint8 stays whole.*bnb_4bit_quant_storage=bfloat16"):
        refuse_quantisation(four_bit(), config)
    with pytest.raises(ValueError, match="load_in_8bit=True cannot be sharded by FSDP2"):
        refuse_quantisation(four_bit(_load_in_4bit=False, _load_in_8bit=True), config)


def test_a_quantised_head_is_refused_whatever_holds_its_numbers(tmp_path: Any) -> None:
    """bitsandbytes may keep 4-bit numbers in a floating type."""
    model = tiny_model("llama")
    model.lm_head.weight.quant_state = object()
    with pytest.raises(ValueError, match=r"LM head is quantised \(Parameter, torch.float32\); leave it in floating"):
        SparsePOTrainer(
            model, args=run_config(tmp_path), train_dataset=preference_rows(2), processing_class=tiny_tokenizer()
        )
