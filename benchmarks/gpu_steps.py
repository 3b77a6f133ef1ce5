"""The part of benchmarks/gpu.py that times whole training steps. It needs TRL and peft; benchmarks/step_variants.py makes
the trainers and their steps."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from common import markdown, peak_of, ratio, spread, take_turns
from gpu_scorer import without_those_that_do_not_fit
from rows import backends_in_models, use_rows
from step_variants import FIELDS, VARIANTS, Bench, Variant, random_rows
from transformers import AutoConfig, AutoModelForCausalLM

_TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
PYTHIA = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 8192,
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
}
LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A model with random weights, and how it is trained."""

    name: str
    model_type: str
    sizes: dict[str, Any]
    lora: bool
    dtype: str  # of the weights; on CUDA arithmetic is bfloat16 either way

    def config(self, tiny: bool) -> Any:
        sizes = self.sizes | (_TINY if tiny else {})
        if tiny and "num_key_value_heads" in sizes:
            sizes["num_key_value_heads"] = 1
        return AutoConfig.for_model(self.model_type, **sizes, **_TOKENS)


GEOMETRIES = {
    "pythia": Geometry("Pythia-1.4B, full training", "gpt_neox", PYTHIA, lora=False, dtype="float32"),
    "llama": Geometry("Llama-8B, LoRA", "llama", LLAMA, lora=True, dtype="bfloat16"),
}
_FULL = (
    "TRL DPO",
    "SparsePO",
    "SparsePO, logged step",
    "SparsePO, scorer=dense",
    "SparsePO, kl_anchor=0.1",
    "SparsePO, 50 % zeros",
    "SparsePO, 80 % zeros",
    "SparsePO, 90 % zeros",
    "SparsePO, 80 % zeros, kl_anchor=0.1",
    "SparsePO, share_prefix=off",
    "MaPO",
    "DPO (ours)",
    "DPO (ours), share_prefix=off",
)
# Masks live where the reference's hidden states are, so that sparsity and anchor are looked at with LoRA too
_LORA = {
    "LoRA: TRL DPO": Variant(peer=True, lora=True),
    "LoRA: TRL DPO, reference precomputed": VARIANTS["LoRA: TRL DPO, reference precomputed"],
    "LoRA: SparsePO": VARIANTS["LoRA: SparsePO"],
    "LoRA: SparsePO, share_prefix=off": Variant(lora=True, settings={"share_prefix": "off"}),
    "LoRA: SparsePO, scorer=dense": Variant(lora=True, settings={"scorer": "dense"}),
    "LoRA: SparsePO, kl_anchor=0.1": Variant(lora=True, settings={"kl_anchor": 0.1}),
    "LoRA: SparsePO, 50 % zeros": Variant(lora=True, mask_zeros=0.5),
    "LoRA: SparsePO, 80 % zeros": Variant(lora=True, mask_zeros=0.8),
    "LoRA: SparsePO, 80 % zeros, kl_anchor=0.1": Variant(lora=True, mask_zeros=0.8, settings={"kl_anchor": 0.1}),
    "LoRA: MaPO": VARIANTS["LoRA: MaPO"],
    "LoRA: MaPO, reference cached": VARIANTS["LoRA: MaPO, reference cached"],
    "LoRA: SparsePO, reference cached": VARIANTS["LoRA: SparsePO, reference cached"],
    "LoRA: SparsePO, reference cached, 80 % zeros": VARIANTS["LoRA: SparsePO, reference cached, 80 % zeros"],
}


def step_variants(geometry: Geometry, only: list[str] | None = None) -> dict[str, Variant]:
    """Variants of a geometry whose settings the installed sparsepo has; of those that are named, if any are."""
    chosen = _LORA if geometry.lora else {name: VARIANTS[name] for name in _FULL}
    if unknown := [name for name in only or () if name not in chosen]:
        raise SystemExit(f"--variants {', '.join(unknown)}: not measured there; choose among {', '.join(chosen)}.")
    return {name: v for name, v in chosen.items() if v.available and (only is None or name in only)}


class GpuBench(Bench):
    """Weights made on the device itself, arithmetic in bfloat16 there; with LoRA there is one model."""

    def __init__(self, args: argparse.Namespace, geometry: Geometry, length: int) -> None:
        self.args = argparse.Namespace(**vars(args), vocabulary=0, ragged=False)
        self.geometry, self.checkpointing = geometry, args.checkpointing == "on"
        self.folder = tempfile.TemporaryDirectory()
        config = geometry.config(args.tiny)
        self.args.vocabulary = config.vocab_size
        self.rows = random_rows(self.args, length // 2, length - length // 2)
        self.tokens = 2 * args.pairs * length
        torch.manual_seed(0)
        with torch.device(args.device):
            self.reference = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, geometry.dtype))
        self.policy = self.reference if geometry.lora else copy.deepcopy(self.reference)
        self.optimizer_state: Any = None

    def _trainer(self, variant: Variant) -> Any:
        bf16 = {"bf16": self.args.device.startswith("cuda")}
        return super()._trainer(dataclasses.replace(variant, settings={**bf16, **variant.settings}))


def steps_of(bench: GpuBench) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """A step of each variant, our default's once more with each backend of rows, and why others were left out."""
    variants = step_variants(bench.geometry, bench.args.variants)
    VARIANTS.update(variants)  # Bench looks them up there
    steps, failed = {}, {}
    for name in variants:
        try:
            steps[name] = bench.step_of(name)
        except torch.OutOfMemoryError:
            failed[name] = "ran out of the device's memory"
    default = "LoRA: SparsePO" if bench.geometry.lora else "SparsePO"
    if default in steps and bench.args.variants is None:
        for rows, backend in backends_in_models(bench.args.device).items():
            steps[f"{default}, rows {rows}"] = _with(backend, steps[default])
    return steps, failed


def _with(backend: Any, step: Callable[[], None]) -> Callable[[], None]:
    def wrapped() -> None:
        with use_rows(backend):
            step()

    return wrapped


def measure_steps(args: argparse.Namespace, geometry: Geometry, length: int) -> dict[str, Any]:
    """Times, tokens a second and peaks of all variants of one geometry and length."""
    bench = GpuBench(args, geometry, length)
    steps, failed = steps_of(bench)
    steps, too_large = without_those_that_do_not_fit(steps, bench.policy.zero_grad)
    failed |= dict.fromkeys(too_large, "ran out of the device's memory")
    if "precompute_ref" not in FIELDS and geometry.lora:
        failed["reference cached"] = "the installed sparsepo has no precompute_ref"
    seconds = take_turns(steps, args.rounds, args.device)
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        rows.append(
            {
                "variant": name,
                "median": median,
                "seconds": times,
                "tokens_per_second": bench.tokens / median,
                "peak_mib": peak_of(steps[name], args.device),
            }
        )
    name = f"tiny stand-in for {geometry.name}" if args.tiny else geometry.name
    title = (
        f"{name}, {geometry.dtype} weights, {args.pairs} pairs × 2 × {length} tokens (half of them prompt), "
        f"gradient checkpointing {args.checkpointing}"
    )
    return {"title": title, "rows": rows, "left_out": failed}


def step_table(result: dict[str, Any]) -> str:
    """Markdown with ratios to TRL's step."""
    seconds = {row["variant"]: row["seconds"] for row in result["rows"]}
    bases = [base for base in seconds if base.removeprefix("LoRA: ").startswith("TRL DPO")]
    lines = []
    for row in result["rows"]:
        ratios = [ratio(row["seconds"], seconds[base]) for base in bases]
        times = [1e3 * t for t in row["seconds"]]
        lines.append([row["variant"], f"{row['tokens_per_second']:.0f}", f"{1e3 * row['median']:.0f}", spread(times, 0),
                      *ratios, f"{row['peak_mib']:.0f}"])  # fmt: skip
    header = ["variant", "tokens/s", "ms (median)", "spread", *(f"÷ {base}" for base in bases), "peak extra MiB"]
    text = f"### {result['title']}\n\n{markdown(header, lines)}"
    for name, reason in result["left_out"].items():
        text += f"\n{name}: left out, {reason}.\n"
    return text
