"""The same runs by one process and by several. As a script it is one of the processes:

RANK=0 WORLD_SIZE=2 … python -m tests.training.parallel_cases OUTPUT CASE [CASE …]

``fsdp2:CASE`` shards by FSDP2; ``resume:CASE`` is one of parallel_checkpoints.py, ``command`` parallel_command.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, TrainerCallback

from sparsepo import LearnedMask, SparsePOConfig, SparsePOTrainer
from sparsepo.inspection.history import record_masks
from sparsepo.masks.base import MaskInputs, TokenMasks
from sparsepo.training.caching import store
from sparsepo.training.step import MASK_ATTRIBUTE
from tests.support import perturbed, tiny_model

from . import parallel_checkpoints, parallel_command
from .fsdp_on_cpu import fsdp2_on_cpu
from .running import PLAIN_HEAD, build, logged, mask_state, policy_state, prepared_rows, run_config

GLOBAL_BATCH = 4
WATCHED = "target-sparsity"  # this case also keeps the masks of a few pairs
# name → (rows to train on, settings). Plain gradient steps show gradients as they are. 11 rows: 4 + 4 and 3; of 9 rows
# the last batch of two processes has one row for the first and none for the second.
_SGD = {"optim": "sgd", "learning_rate": 0.3, "mask_learning_rate": 3.0}
_IN_ORDER = {"train_sampling_strategy": "sequential"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "untied": (11, {**_SGD, "architecture": "llama", "gradient_accumulation_steps": 2}),
    "full-learned": (11, {**_SGD, "gradient_accumulation_steps": 2, "mask_dropout": 0.3}),
    "lora-independent": (9, {**_SGD, **PLAIN_HEAD, "lora": True, "mask_sharing": "independent", "mask_dropout": 0.3}),
    "full-activation": (9, {"optim": "sgd", "learning_rate": 0.3, "objective": "mapo"}),
    "lora-activation": (
        11,
        {"optim": "sgd", "learning_rate": 0.3, "objective": "mapo", "lora": True, "gradient_accumulation_steps": 2},
    ),
    "full-checkpointing": (11, {**_SGD, "gradient_checkpointing": True}),
    "lora-checkpointing": (11, {**_SGD, **PLAIN_HEAD, "lora": True, "gradient_checkpointing": True}),
    # a large epsilon: Adam would turn the rounding of gradients that are zero (keys' biases) into steps
    "adamw": (11, {"gradient_accumulation_steps": 2, "mask_on": "kl", "adam_epsilon": 1e-3}),
    "random": (9, {"optim": "sgd", "learning_rate": 0.3, "mask": "random", "mask_random_sparsity": 0.5}),
    "data": (11, {"optim": "sgd", "learning_rate": 0.3, "mask": "data"}),
    "l1-anchor": (9, {**_SGD, "mask_l1_reward": 0.01, "mask_l1_kl": 0.02, "kl_anchor": 0.2}),
    # of 9 rows the last batch has a row for one process only
    "target-sparsity": (
        9,
        {
            **_SGD,
            "mask_sharing": "independent",
            "mask_target_sparsity_reward": 0.5,
            "mask_target_sparsity_kl": 0.3,
            "mask_sparsity_warmup": 1,
            "gradient_accumulation_steps": 2,
        },
    ),
    "log-ratio-fit": (
        9,
        {
            **_SGD,
            "mask_log_ratio_weight": 1.0,
            "mask_sharing": "independent",
            "mask_map": "mlp",
            "mask_learning_rate": 0.1,
            "gradient_accumulation_steps": 2,
        },
    ),
    "stochastic-gate": (11, {**_SGD, "mask_gate": "gumbel_sigmoid", "mask_learning_rate": 0.3}),
    "dense-scorer": (9, {**_SGD, "scorer": "dense"}),
    "last-layer": (11, {**_SGD, "mask_layers": "last"}),
    "mapo-start": (11, {**_SGD, "mask_init": "mapo", "mask_init_pairs": 5}),
    "tdpo2": (9, {"optim": "sgd", "learning_rate": 0.3, "objective": "tdpo2"}),
    "simpo": (9, {"optim": "sgd", "learning_rate": 0.3, "objective": "simpo", "sft_weight": 0.1}),
    # several files, so that both processes fill some
    "cached": (
        11,
        {
            **_SGD,
            "mask_dropout": 0.3,
            "precompute_ref": True,
            "precompute_ref_batch_size": 2,
            "share_prefix": "off",
            "rows_of_a_file": 3,
        },
    ),
    # of rows in their order each second process has only rows whose tokens no mask keeps, and steps that are not logged
    # leave such tokens out: no token at all, and a mask head without a gradient
    "rank-without-tokens": (
        11,
        {"optim": "sgd", "learning_rate": 0.3, "mask": "data", "emptied": True, **_IN_ORDER, "logging_steps": 4},
    ),
    "rank-with-empty-mask": (11, {**_SGD, "emptied": True, **_IN_ORDER, "logging_steps": 4}),
    "shared-prefix": (11, {**_SGD, "share_prefix": "on", "architecture": "llama"}),
    "half": (11, {**_SGD, "mask_learning_rate": 0.3, "bf16": True}),
    "quantised": (9, {**_SGD, **PLAIN_HEAD, "bits": 4}),
    "quantised-activation": (11, {"optim": "sgd", "learning_rate": 0.3, "objective": "mapo", "bits": 4}),
    # two passes over a stream, and evaluation on streams: what fills their last batches must not count
    "streaming": (11, {**_SGD, "mask_learning_rate": 0.5, "mask_dropout": 0.3, "streaming": True, "max_steps": 6}),
}

# cases of the health monitor; "tampered" changes the head on one process only, as nothing should
HEALTH_CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "sums": (11, {**_SGD, "mask_sharing": "independent", "mask_l1_reward": 0.1, "gradient_accumulation_steps": 2}),
    "tampered": (9, {**_SGD, "mask_on_failure": "stop", "max_steps": 6, "tamper": 2}),
    # the second process alone sees masks that are not finite, for which all leave the step out and log at once
    "broken": (11, {**_SGD, **_IN_ORDER, "non_finite": "skip", "logging_steps": 1, "broken": True}),
}


def is_emptied(row: Any) -> Any:
    """Whether a row of the training set is one of the emptied: two of four, those of the second process of two."""
    return row % GLOBAL_BATCH >= GLOBAL_BATCH // 2


def empty_weights(row: dict[str, Any]) -> dict[str, Any]:
    """Weights of zero for the emptied rows."""
    sides = ("chosen_weights", "rejected_weights")
    return {side: [0.0 * value if is_emptied(row["row_id"]) else value for value in row[side]] for side in sides}


class MaskOfSomeRows(LearnedMask):
    """A learned mask that keeps nothing of the emptied rows."""

    def token_masks(self, inputs: MaskInputs) -> TokenMasks:
        masks = super().token_masks(inputs)
        assert inputs.noise is not None
        kept = ~is_emptied(inputs.noise.row // 2)[:, None]
        return TokenMasks(masks.reward * kept, masks.kl * kept)


class BrokenMask(LearnedMask):
    """A learned mask that is infinite on the emptied rows while it trains."""

    def token_masks(self, inputs: MaskInputs) -> TokenMasks:
        masks = super().token_masks(inputs)
        assert inputs.noise is not None
        broken = is_emptied(inputs.noise.row // 2)[:, None] & self.training
        return TokenMasks(masks.reward.masked_fill(broken, torch.inf), masks.kl.masked_fill(broken, torch.inf))


class Tamper(TrainerCallback):
    """Moves the last process's mask head after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step and args.process_index == 1:
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if name.endswith("layer_bias"))[0] += 1e-6


RESUMED, COMMAND = "resume:", "command"
STOPPED, FULL = "stop", "full"  # of parallel_checkpoints.py
SHARDED = "fsdp2:"  # before a case's name: by FSDP2 where there are several processes, otherwise by DDP


def run_case(name: str, folder: Path, processes: int, rank: int = 0) -> SparsePOTrainer:
    """Train and evaluate one case; results go to ``folder/name-rank*``."""
    count, settings = {**CASES, **HEALTH_CASES}[name.removeprefix(SHARDED)]
    settings = {"max_steps": 4 if count == 11 else 3, **settings}
    if name.startswith(SHARDED) and processes > 1:
        with fsdp2_on_cpu():
            trainer = _run_case(name, folder, processes, rank, count, settings)
            check_is_sharded(trainer)
            return trainer
    return _run_case(name, folder, processes, rank, count, settings)


def _run_case(
    name: str, folder: Path, processes: int, rank: int, count: int, settings: dict[str, Any]
) -> SparsePOTrainer:
    # one of the processes may be the tests' own
    with patch.object(store, "ROWS_OF_A_FILE", settings.pop("rows_of_a_file", store.ROWS_OF_A_FILE)):
        return _run(name, folder, processes, rank, count, settings)


def _run(name: str, folder: Path, processes: int, rank: int, count: int, settings: dict[str, Any]) -> SparsePOTrainer:
    names = ("lora", "streaming", "tamper", "emptied", "broken", "bits")
    lora, streaming, tamper, emptied, broken, bits = (settings.pop(key, False) for key in names)
    architecture = settings.pop("architecture", "gpt2")
    rows, sets = prepared_rows(folder / "rows", count), heldout(folder)
    config = run_config(  # after the rows, whose preparation has an accelerator of its own
        folder / f"{name}-{processes}",
        **settings,
        per_device_train_batch_size=GLOBAL_BATCH // processes,
        per_device_eval_batch_size=GLOBAL_BATCH // processes,
        ddp_backend="gloo" if processes > 1 else None,
        ddp_timeout=60,
    )
    reference = tiny_model(architecture)
    models: dict[str, Any] = {"model": reference}
    if bits:
        lora, models = True, quantised_model(folder / f"{name}-base-{processes}", config, rank)
    elif not lora:
        models = {"model": perturbed(reference), "ref_model": reference}
    if streaming:
        rows = rows.to_iterable_dataset(num_shards=2)  # accelerate would give each process one, of 6 and 5 rows
        sets = {name: part.to_iterable_dataset() for name, part in sets.items()}
    if emptied and config.mask == "data":
        rows = rows.map(empty_weights)
    elif emptied:
        models["mask"] = MaskOfSomeRows.for_model(reference, init="ones", seed=1)
    elif broken:
        models["mask"] = BrokenMask.for_model(reference, init="ones", seed=1)
    trainer = build(config, rows, lora=lora, eval_dataset=sets, **models)
    if bits:
        keep_adapters_exact(trainer)
    if tamper:
        trainer.add_callback(Tamper(tamper))
    if name.removeprefix(SHARDED) == WATCHED:
        record_masks(trainer, pairs=3, every=1)
    trainer.train()
    write(trainer, folder / f"{name}-of{processes}-rank{rank}", trainer.evaluate())
    return trainer


def quantised_model(folder: Path, config: SparsePOConfig, rank: int) -> dict[str, Any]:
    """Arguments of a trainer of a model that is loaded with 4 bits, kept in float32 numbers so that FSDP2 shards them."""
    if rank == 0:
        tiny_model("llama").save_pretrained(folder)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    config.model_init_kwargs = {"dtype": "float32"}
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
    )
    return {"model": str(folder), "quantization_config": quantised}


def keep_adapters_exact(trainer: SparsePOTrainer) -> None:
    """Adapters in float32, not TRL's bfloat16, whose rounding would hide what differs."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def heldout(folder: Path) -> dict[str, Dataset]:
    """Sets whose last batch is short by one row, and by three."""
    return {str(count): prepared_rows(folder / "rows", count, seed=1) for count in (7, 5)}


def write(trainer: SparsePOTrainer, target: Path, metrics: dict[str, float]) -> None:
    trainable = trainer.masker is not None and trainer.masker.is_trainable
    save_file(policy_state(trainer), f"{target}-policy.safetensors")
    save_file(mask_state(trainer) if trainable else {"none": torch.zeros(1)}, f"{target}-mask.safetensors")
    monitor = trainer.mask_monitor
    health = None if monitor is None else {**monitor.content(), **monitor.health.state()}
    content = {"log": logged(trainer), "metrics": metrics, "health": health}
    Path(f"{target}.json").write_text(json.dumps(content), encoding="utf-8")


def check_is_sharded(trainer: SparsePOTrainer) -> None:
    """The policy's weights are in shards, the mask head's whole and in float32."""
    assert trainer.accelerator.is_fsdp2
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule):  # what evaluation has left whole
            module.reshard()
    for name, parameter in trainer.model.named_parameters():
        assert isinstance(parameter, DTensor) is (MASK_ATTRIBUTE not in name), name
        if MASK_ATTRIBUTE in name:
            assert parameter.dtype == torch.float32


def main() -> None:
    torch.set_num_threads(1)
    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    for name in sys.argv[2:]:
        if name == COMMAND:  # the last one: it ends the process group
            return parallel_command.run_command(Path(sys.argv[1]), rank)
        if name in (STOPPED, FULL):
            run = parallel_checkpoints.run_stopped if name == STOPPED else parallel_checkpoints.run_full
            run(Path(sys.argv[1]) / name, rank)
            continue
        if name.startswith(RESUMED):
            parallel_checkpoints.run_case(name.removeprefix(RESUMED), Path(sys.argv[1]), processes, rank)
            continue
        trainer = run_case(name, Path(sys.argv[1]), processes, rank)
        if not name.startswith(SHARDED):
            assert trainer.accelerator.num_processes == processes
            assert type(trainer.model_wrapped) is torch.nn.parallel.DistributedDataParallel
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
