"""Models, ways to train them, and their optimiser steps, for benchmarks/plan_check.py."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import without_trl
from transformers import AutoConfig, AutoModelForCausalLM

HAS_TRL = without_trl.prepare()

from sparsepo.masks import LearnedMask  # noqa: E402
from sparsepo.objectives import get_objective, get_objective_class  # noqa: E402
from sparsepo.planning.four_bit import adapters_in_half  # noqa: E402
from sparsepo.planning.needs import MASK_MAP, needs_of  # noqa: E402
from sparsepo.planning.settings import PlanSettings  # noqa: E402
from sparsepo.scoring import FusedScorer  # noqa: E402
from sparsepo.scoring.dense import noise_key  # noqa: E402
from sparsepo.training.step import policy_step, reference_view  # noqa: E402


def _neox(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt_neox", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * hidden, "vocab_size": 50304, "max_position_embeddings": 4096}  # fmt: skip


MODELS: dict[str, dict[str, Any]] = {
    "Pythia-160M": _neox(768, 12, 12),
    "Pythia-410M": _neox(1024, 24, 16),
    "Pythia-1.4B": _neox(2048, 24, 16),
    "Qwen2-0.5B": {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                   "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
                   "tie_word_embeddings": True, "max_position_embeddings": 4096},
    "Llama-8B": {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
                 "tie_word_embeddings": False, "max_position_embeddings": 8192},
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "tiny NeoX": _neox(64, 3, 4) | {"vocab_size": 512},
    "tiny Llama": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "intermediate_size": 160, "vocab_size": 512, "tie_word_embeddings": True,
                   "max_position_embeddings": 512},
    # large enough that weights are most of it
    "small Llama": {"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8,
                    "num_key_value_heads": 4, "intermediate_size": 2816, "vocab_size": 4096, "tie_word_embeddings": False,
                    "max_position_embeddings": 512},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model and one way to train it."""

    model: str
    length: int
    pairs: int
    lora: bool = False
    precision: str = "mixed"
    checkpointing: bool = True
    objective: str = "sparsepo"
    accumulation: int = 1
    four_bit: bool = False

    @property
    def settings(self) -> PlanSettings:
        return PlanSettings(
            prompt_tokens=self.length // 2,
            response_tokens=self.length - self.length // 2,
            max_length=self.length,
            objective=self.objective,
            mask="learned" if get_objective_class(self.objective).reads_masks else "none",
            lora=self.lora,
            load_in_4bit=self.four_bit,
            precision=self.precision,
            batch_size=self.pairs,
            accumulation=self.accumulation,
            checkpointing=self.checkpointing,
            padded=False,
        )

    @property
    def title(self) -> str:
        words = [self.model, "QLoRA" if self.four_bit else "LoRA" if self.lora else "full", self.precision]
        words += ["checkpointing" if self.checkpointing else "no checkpointing"]
        words += [self.objective] if self.objective != "sparsepo" else []
        words += [f"accumulation {self.accumulation}"] if self.accumulation > 1 else []
        return f"{', '.join(words)}, {self.pairs} × 2 × {self.length}"


def cases(tiny: bool) -> list[Case]:
    """The most telling first: a run may be ended before the last. Those of 4 bits need bitsandbytes."""
    return [case for case in _cases(tiny) if not case.four_bit or find_spec("bitsandbytes")]


def _cases(tiny: bool) -> list[Case]:
    if tiny:
        names = [name for name in TINY if name.startswith("tiny")]
        ways = [(lora, "mixed" if lora else "fp32", ck) for lora in (False, True) for ck in (True, False)]
        return [Case(name, 48, 2, *way) for name in names for way in ways] + [
            Case(name, 64, 2, True, "fp32", ck, four_bit=True) for name in TINY for ck in (True, False)
        ]
    ways = [(lora, precision, ck) for lora in (False, True) for precision in ("mixed", "bf16") for ck in (True, False)]
    sizes = [("Pythia-1.4B", 2048, 2), ("Pythia-410M", 1024, 4), ("Pythia-160M", 512, 8), ("Pythia-1.4B", 512, 4)]
    found = [Case(model, length, pairs, *way) for model, length, pairs in sizes[:1] for way in ways]
    found += [
        Case("Llama-8B", 2048, 2, True, "bf16"),
        Case("Llama-8B", 1024, 2, True, "bf16", False),
        Case("Llama-8B", 2048, 2, True, "bf16", four_bit=True),
        Case("Llama-8B", 1024, 2, True, "bf16", False, four_bit=True),
        Case("Pythia-1.4B", 2048, 2, True, "bf16", four_bit=True),
        Case("Qwen2-0.5B", 1024, 4),
        Case("Qwen2-0.5B", 1024, 4, checkpointing=False),
        Case("Pythia-1.4B", 2048, 2, objective="dpo"),
        Case("Pythia-1.4B", 1024, 2, accumulation=2),
        Case("Pythia-410M", 4096, 2),
        Case("Pythia-1.4B", 128, 1),
    ]
    return found + [Case(model, length, pairs, *way) for model, length, pairs in sizes[1:] for way in ways]


def quantised(model: Any, dtype: torch.dtype, device: str) -> Any:
    """The model with linear layers of 4 bits, as transformers loads them from a folder; needs bitsandbytes."""
    import bitsandbytes
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = set(get_keys_to_not_convert(model))
    for name, old in list(model.named_modules()):
        if type(old) is torch.nn.Linear and name not in kept:
            has_bias = old.bias is not None
            new = bitsandbytes.nn.Linear4bit(old.in_features, old.out_features, has_bias, dtype, False, "nf4")
            new.support_avx512bf16_for_cpu = False  # which packs weights anew for evaluation
            new.weight = bitsandbytes.nn.Params4bit(
                old.weight.data.cpu(), requires_grad=False, compress_statistics=False, quant_type="nf4", module=new
            )
            new.bias = old.bias
            model.set_submodule(name, new.to(device))
    model.is_loaded_in_4bit = True  # what PEFT asks
    return model


class Run:
    """Models, optimiser and a batch of a case, and its optimiser step."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device, self.settings = case, device, case.settings
        self.needs = needs_of(self.settings)
        self.held: dict[str, int] = {}
        self.config = AutoConfig.for_model(**(MODELS | TINY)[case.model], bos_token_id=0, eos_token_id=0)
        torch.manual_seed(0)
        before = self._now()
        with torch.device(device):
            policy = AutoModelForCausalLM.from_config(
                self.config, dtype=getattr(torch, self.settings.weight_dtype), attn_implementation="sdpa"
            )
        self.reference: Any = None
        if case.four_bit:
            policy = quantised(policy, getattr(torch, self.settings.weight_dtype), device)
        if case.lora:
            policy = self._adapted(policy)
        self.held["weights"] = self._now() - before
        if self.needs.loads_reference:
            before = self._now()
            self.reference = copy.deepcopy(policy).eval().requires_grad_(False)
            self.held["reference"] = self._now() - before
        if case.checkpointing:
            policy.activation_checkpointing_enable({"use_reentrant": False})
        self.policy = policy.train()
        self._mask_and_objective()
        trained = [p for p in [*self.policy.parameters(), *self._mask_parameters()] if p.requires_grad]
        fused = {"fused": True} if device == "cuda" else {}
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, **fused)
        self.batch = self._batch()
        self.number = 0

    def _adapted(self, policy: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted: Any = get_peft_model(policy, config)
        if self.case.four_bit:
            adapters_in_half(adapted)
        if self.case.checkpointing:
            adapted.enable_input_require_grads()
        return adapted

    def _mask_and_objective(self) -> None:
        self.mask = None
        anchor = {}
        if self.needs.states:
            text = self.config.get_text_config()
            mask = LearnedMask(text.hidden_size, text.num_hidden_layers, init="ones", map=MASK_MAP)
            self.mask, anchor = mask.to(self.device).train(), {"kl_anchor": 0.1}
        self.objective = get_objective(self.case.objective, **anchor)

    def _mask_parameters(self) -> list[torch.nn.Parameter]:
        return [] if self.mask is None else list(self.mask.parameters())

    def _batch(self) -> dict[str, Any]:
        rows, length = 2 * self.case.pairs, self.case.length
        ids = torch.randint(1, self.config.vocab_size, (rows, length), device=self.device)
        prompt = length // 2
        ids[self.case.pairs :, :prompt] = ids[: self.case.pairs, :prompt]
        completion = torch.ones_like(ids)
        completion[:, :prompt] = 0
        identity = torch.arange(self.case.pairs, device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion,
                "row_id": identity}  # fmt: skip

    def scales(self) -> list[torch.Tensor]:
        """What stands beside weights of 4 bits."""
        states = [p.quant_state for p in self.policy.parameters() if hasattr(p, "quant_state")]
        return [tensor for state in states for tensor in (state.absmax, state.code)]

    def autocast(self) -> Any:
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.settings.autocast else nullcontext()

    def micro_batch(self) -> None:
        """Forward and backward."""
        model = self.policy if self.reference is None else self.reference
        disabled = self.policy.disable_adapter() if self.case.lora else nullcontext()
        with disabled:
            view = reference_view(model, self.batch, self.mask, self.autocast())
        share = torch.full((self.case.pairs,), 1 / (self.case.pairs * self.case.accumulation), device=self.device)
        step = policy_step(
            self.policy, self.batch, view, self.mask, self.objective, FusedScorer(),
            noise_key(self.batch, 0, self.number), pair_weight=share, need_kl=self.needs.kl, complete=False,
            anchor_share=0.25, router=False, autocast=self.autocast(),
        )  # fmt: skip
        loss = step.scored.loss
        del view, step
        loss.backward()

    def step(self) -> None:
        """A whole optimiser step."""
        for _ in range(self.case.accumulation):
            self.micro_batch()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self.device == "cuda" else 0
