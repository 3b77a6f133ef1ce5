"""The trainers that benchmarks/step.py compares, and one training step of each as Trainer's loop makes it.

All policies of a process share their weights, gradients and optimiser states, all references theirs: each trainer gets
modules of its own around the same parameters, so that a dozen trainers fit into memory. LoRA policies stand on the
reference's weights, which nothing trains.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import trl.trainer.utils as trl_utils
from composed import ComposedScorer
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

from sparsepo import SparsePOConfig, SparsePOTrainer
from sparsepo.masks import LearnedMask
from sparsepo.masks.base import MaskInputs

ZEROS_STREAM = 9_000  # of the counter-based noise that decides which tokens are zero
FIELDS = {f.name for f in dataclasses.fields(SparsePOConfig)}


class MaskWithZeros(LearnedMask):
    """A learned mask that is trained as ever, with a given share of tokens at exact zero: sparsity without the training
    that brings it about."""

    share = 0.0

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        assert inputs.noise is not None
        kept = (inputs.noise.at_step(0).uniform(ZEROS_STREAM) >= self.share).float()
        reward, kl = super().raw_masks(inputs)
        return reward * kept, kl * kept


class PeerTrainer(DPOTrainer):
    """TRL's trainer on rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@contextmanager
def head_on_responses() -> Iterator[None]:
    """TRL's head on response positions only, as TRL itself does on devices with Triton.

    ``_fused_forward`` asks ``trl.trainer.utils._use_triton`` whether to compact its rows, the kernels ask their own
    module's: with the first name answering yes, a CPU run scores the rows that have a label, by the same torch code.
    """
    with patch.object(trl_utils, "_use_triton", lambda device: True):
        yield


@dataclass(frozen=True)
class Variant:
    """One row of the table. ``mask_zeros``: share of tokens whose learned masks are zero; ``composed``: TRL's kernels
    as the scorer."""

    peer: bool = False
    lora: bool = False
    responses_only: bool = False
    logged: bool = False
    mask_zeros: float | None = None
    composed: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Settings that the installed sparsepo lacks."""
        return [] if self.peer else sorted(set(self.settings) - FIELDS)

    @property
    def available(self) -> bool:
        """Whether the installed sparsepo has every setting."""
        return not self.missing


def ours(**settings: Any) -> Variant:
    return Variant(settings=settings)


_CACHED = {"precompute_ref": True}
VARIANTS: dict[str, Variant] = {
    "TRL DPO": Variant(peer=True),
    "TRL DPO, head on responses": Variant(peer=True, responses_only=True),
    "SparsePO": ours(),
    "SparsePO, logged step": Variant(logged=True),
    "SparsePO, share_prefix=off": ours(share_prefix="off"),
    "SparsePO, scorer=dense": ours(scorer="dense"),
    "SparsePO, TRL's kernels composed": Variant(composed=True),
    "SparsePO, kl_anchor=0.1": ours(kl_anchor=0.1),
    "SparsePO, 50 % zeros": Variant(mask_zeros=0.5),
    "SparsePO, 80 % zeros": Variant(mask_zeros=0.8),
    "SparsePO, 90 % zeros": Variant(mask_zeros=0.9),
    "SparsePO, 50 % zeros, kl_anchor=0.1": Variant(mask_zeros=0.5, settings={"kl_anchor": 0.1}),
    "SparsePO, 80 % zeros, kl_anchor=0.1": Variant(mask_zeros=0.8, settings={"kl_anchor": 0.1}),
    "SparsePO, 90 % zeros, kl_anchor=0.1": Variant(mask_zeros=0.9, settings={"kl_anchor": 0.1}),
    "SparsePO, 80 % zeros, skip_masked=False": Variant(mask_zeros=0.8, settings={"skip_masked": False}),
    "MaPO": ours(objective="mapo"),
    "DPO (ours)": ours(objective="dpo"),
    "DPO (ours), share_prefix=off": ours(objective="dpo", share_prefix="off"),
    "LoRA: TRL DPO, reference precomputed": Variant(True, True, settings={"precompute_ref_log_probs": True}),
    "LoRA: TRL DPO, precomputed, head on responses": Variant(
        True, True, True, settings={"precompute_ref_log_probs": True}
    ),
    "LoRA: MaPO": Variant(lora=True, settings={"objective": "mapo"}),
    "LoRA: SparsePO": Variant(lora=True),
    "LoRA: SparsePO, kl_anchor=0.1": Variant(lora=True, settings={"kl_anchor": 0.1}),
    "LoRA: SparsePO, scorer=dense": Variant(lora=True, settings={"scorer": "dense"}),
    "LoRA: SparsePO, 80 % zeros": Variant(lora=True, mask_zeros=0.8),
    "LoRA: MaPO, reference cached": Variant(lora=True, settings={"objective": "mapo", **_CACHED}),
    "LoRA: SparsePO, reference cached": Variant(lora=True, settings=_CACHED),
    "LoRA: SparsePO, reference cached, kl_anchor=0.1": Variant(lora=True, settings={"kl_anchor": 0.1, **_CACHED}),
    "LoRA: SparsePO, reference cached, 80 % zeros": Variant(lora=True, mask_zeros=0.8, settings=_CACHED),
}


def model_config(args: argparse.Namespace) -> Any:
    """GPT-2 or Llama geometry."""
    sizes = {"vocab_size": args.vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    heads = max(1, args.hidden // 64)
    if args.geometry == "gpt2":
        sizes |= {"n_embd": args.hidden, "n_layer": args.layers, "n_head": heads, "n_positions": args.positions}
    else:
        sizes |= {
            "hidden_size": args.hidden,
            "num_hidden_layers": args.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": 8 * args.hidden // 3,
            "max_position_embeddings": args.positions,
        }
    return AutoConfig.for_model(args.geometry, **sizes)


def random_rows(args: argparse.Namespace, prompt: int, response: int) -> Dataset:
    """Tokenised pairs of random tokens; ``--ragged``: lengths between half of the given ones and all of them."""
    g = torch.Generator().manual_seed(0)

    def tokens(longest: int, whole: bool) -> list[int]:
        low = longest if whole else max(1, longest // 2)
        length = int(torch.randint(low, longest + 1, (), generator=g))
        return torch.randint(1, args.vocabulary, (length,), generator=g).tolist()

    whole = [not args.ragged or pair == 0 for pair in range(args.pairs)]
    rows = [
        {
            "prompt_ids": tokens(prompt, w),
            "chosen_ids": tokens(response, w),
            "rejected_ids": tokens(response, w),
            "row_id": pair,
        }
        for pair, w in enumerate(whole)
    ]
    return Dataset.from_list(rows)


def tokenizer() -> PreTrainedTokenizerFast:
    """Names the padding token; nothing is tokenised."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")),
        pad_token="<eos>",
        eos_token="<eos>",
    )


class Bench:
    """Policy and reference weights of one process, and the trainers that stand on them."""

    def __init__(self, args: argparse.Namespace, prompt: int, response: int, checkpointing: bool) -> None:
        self.args, self.checkpointing = args, checkpointing
        self.folder = tempfile.TemporaryDirectory()
        self.rows = random_rows(args, prompt, response)
        torch.manual_seed(0)
        dtype = getattr(torch, args.dtype)
        self.policy = AutoModelForCausalLM.from_config(model_config(args), dtype=dtype)
        self.reference = copy.deepcopy(self.policy)
        for model in (self.policy, self.reference):
            model.to(args.device)
        self.optimizer_state: Any = None

    def step_of(self, name: str) -> Callable[[], None]:
        """A function that makes one training step of a variant: forward, backward, clipping, optimiser."""
        variant = VARIANTS[name]
        trainer = self._trainer(variant)
        trainer.is_in_train, trainer.current_gradient_accumulation_steps = True, 1
        trainer._init_training_state(10**9, 10**9, 1, None, None)
        trainer.state.logging_steps = 1 if variant.logged else 10**9
        if self.checkpointing:
            trainer.model.activation_checkpointing_enable({"use_reentrant": False})
        model, _ = trainer._prepare_for_training(10**9, None, None)
        if not variant.lora:  # AdamW's two numbers a weight, for all trainers of these weights
            optimizer = trainer.optimizer.optimizer
            self.optimizer_state = optimizer.state if self.optimizer_state is None else self.optimizer_state
            optimizer.state = self.optimizer_state
        rows = trainer.train_dataset
        batch = trainer.data_collator([rows[index] for index in range(len(rows))])
        patched = head_on_responses if variant.responses_only else nullcontext

        def step() -> None:
            with patched():
                samples, count = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
                trainer.accelerator.gradient_state._set_sync_gradients(True)
                trainer.training_step(model, samples[0], count)
                trainer._get_grad_norm(model, grad_norm=trainer._clip_grad_norm(model))
                trainer.optimizer.step()
                trainer.lr_scheduler.step()
                model.zero_grad()
                trainer.state.global_step += 1

        return step

    def _trainer(self, variant: Variant) -> Any:
        settings = {
            "per_device_train_batch_size": self.args.pairs,
            "gradient_checkpointing": self.checkpointing,
            "max_length": None,
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant",
            "max_steps": 10**9,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "log_level": "error",
            "use_cpu": self.args.device == "cpu",
            "bf16": False,
            **variant.settings,
        }
        if settings.get("precompute_ref"):  # trainers of the same reference and rows find it there
            settings["precompute_ref_dir"] = f"{self.folder.name}/reference"
        arguments: dict[str, Any] = {
            "model": with_shared_weights(self.reference if variant.lora else self.policy),
            "ref_model": None if variant.lora else with_shared_weights(self.reference),
            "train_dataset": self.rows,
            "processing_class": tokenizer(),
            "peft_config": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            if variant.lora
            else None,
        }
        if variant.mask_zeros is not None:
            mask = MaskWithZeros.for_model(self.policy, init="ones")
            mask.share = variant.mask_zeros
            arguments["mask"] = mask
        config, cls = (DPOConfig, PeerTrainer) if variant.peer else (SparsePOConfig, SparsePOTrainer)
        trainer = cls(args=config(f"{self.folder.name}/run", **settings), **arguments)
        if variant.composed:
            trainer.scorer = ComposedScorer()
        trainer.remove_callback(PrinterCallback)
        return trainer


def with_shared_weights(model: nn.Module) -> nn.Module:
    """New modules around the same parameters."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
