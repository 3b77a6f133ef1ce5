"""What `sparsepo plan` says of memory, beside what training steps take: random weights of several sizes, full and LoRA.

    python benchmarks/plan_check.py --output benchmarks/results/plan_check

On a CUDA device: ``torch.cuda.max_memory_allocated`` of a whole optimiser step (the third), and what weights, gradients
and optimiser states hold between the phases; the step is the repository's own (training/step.py and the fused scorer), with
fused AdamW and without padding. TRL and datasets are not needed. ``--tiny`` runs small sizes on a CPU, where torch's
profiler counts what is allocated: to see that it works. Results are written after every case; ``--seconds`` ends a run in
time.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import without_trl
from common import markdown, peak_allocated, write_results
from transformers import AutoConfig, AutoModelForCausalLM

HAS_TRL = without_trl.prepare()

from sparsepo.masks import LearnedMask  # noqa: E402
from sparsepo.objectives import get_objective, get_objective_class  # noqa: E402
from sparsepo.planning.fake_step import MASK_MAP, needs_of  # noqa: E402
from sparsepo.planning.memory import plan_memory  # noqa: E402
from sparsepo.planning.settings import PlanSettings  # noqa: E402
from sparsepo.planning.shapes import shape_of  # noqa: E402
from sparsepo.scoring import FusedScorer  # noqa: E402
from sparsepo.scoring.dense import noise_key  # noqa: E402
from sparsepo.training.step import policy_step, reference_view  # noqa: E402

MIB = 1 << 20
STATIC = ("weights", "reference", "gradients", "optimizer")


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

    @property
    def settings(self) -> PlanSettings:
        return PlanSettings(
            prompt_tokens=self.length // 2,
            response_tokens=self.length - self.length // 2,
            max_length=self.length,
            objective=self.objective,
            mask="learned" if get_objective_class(self.objective).reads_masks else "none",
            lora=self.lora,
            precision=self.precision,
            batch_size=self.pairs,
            accumulation=self.accumulation,
            checkpointing=self.checkpointing,
            padded=False,
        )

    @property
    def title(self) -> str:
        words = [self.model, "LoRA" if self.lora else "full", self.precision]
        words += ["checkpointing" if self.checkpointing else "no checkpointing"]
        words += [self.objective] if self.objective != "sparsepo" else []
        words += [f"accumulation {self.accumulation}"] if self.accumulation > 1 else []
        return f"{', '.join(words)}, {self.pairs} × 2 × {self.length}"


def cases(tiny: bool) -> list[Case]:
    """The most telling first: a run may be ended before the last."""
    if tiny:
        return [Case(m, 48, 2, lora, "mixed" if lora else "fp32", ck) for m in TINY for lora in (False, True)
                for ck in (True, False)]  # fmt: skip
    ways = [(lora, precision, ck) for lora in (False, True) for precision in ("mixed", "bf16") for ck in (True, False)]
    sizes = [("Pythia-1.4B", 2048, 2), ("Pythia-410M", 1024, 4), ("Pythia-160M", 512, 8), ("Pythia-1.4B", 512, 4)]
    found = [Case(model, length, pairs, *way) for model, length, pairs in sizes[:1] for way in ways]
    found += [
        Case("Llama-8B", 2048, 2, True, "bf16"),
        Case("Llama-8B", 1024, 2, True, "bf16", False),
        Case("Qwen2-0.5B", 1024, 4),
        Case("Qwen2-0.5B", 1024, 4, checkpointing=False),
        Case("Pythia-1.4B", 2048, 2, objective="dpo"),
        Case("Pythia-1.4B", 1024, 2, accumulation=2),
        Case("Pythia-410M", 4096, 2),
        Case("Pythia-1.4B", 128, 1),
    ]
    return found + [Case(model, length, pairs, *way) for model, length, pairs in sizes[1:] for way in ways]


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
        if case.lora:
            policy = self._adapted(policy)
        self.held["weights"] = self._now() - before
        if self.needs.loads_reference:
            before = self._now()
            self.reference = copy.deepcopy(policy).eval().requires_grad_(False)
            self.held["reference"] = self._now() - before
        if case.checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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


def tensor_bytes(tensors: Any) -> int:
    """Bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(case: Case, device: str) -> dict[str, Any]:
    """Peak, parts and seconds of a case."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated() if device == "cuda" else 0
    run = Run(case, device)
    run.step()
    states = [t for state in run.optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    held = {"weights": tensor_bytes(run.policy.parameters()), "optimizer": tensor_bytes(states)}
    held["reference"] = 0 if run.reference is None else tensor_bytes(run.reference.parameters())
    run.micro_batch()
    gradients = [p.grad for g in run.optimizer.param_groups for p in g["params"] if p.grad is not None]
    held["gradients"] = tensor_bytes(gradients)
    del gradients
    run.optimizer.zero_grad(set_to_none=True)
    if device != "cuda":
        static = sum(held[name] for name in ("weights", "optimizer", "reference"))
        return {"peak": static + peak_allocated(run.step) * MIB, "held": held, "seconds": None}
    run.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run.step()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    found: dict[str, Any] = {
        "peak": torch.cuda.max_memory_allocated(),  # with cuBLAS's workspaces, which an earlier case has left
        "base": base,
        "held": held,
        "reserved": torch.cuda.max_memory_reserved(),
        "outside": total - free - torch.cuda.memory_reserved(),
    }
    found["idle"] = torch.cuda.memory_allocated() - sum(held[n] for n in ("weights", "optimizer", "reference"))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return found | {"seconds": statistics.median(times), "all_seconds": times}


def planned(case: Case, device: str, memory: float) -> dict[str, Any]:
    """What `sparsepo plan` says of a case."""
    shape = shape_of(AutoConfig.for_model(**(MODELS | TINY)[case.model]), case.model)
    start = time.perf_counter()
    plan = plan_memory(shape, case.settings, memory, on_gpu=device == "cuda")
    record = plan.record
    static = {"weights": record.weights, "reference": record.reference,
              "gradients": record.trainable_bytes + 4 * record.mask_parameters}  # fmt: skip
    return {
        "parts": plan.parts,
        "allocated": plan.allocated,
        "when": plan.when,
        "static": static,
        "flops": record.flops,
        "operations": record.operations,
        "traffic": record.traffic,
        "rows": record.rows,
        "trainable": record.trainable,
        "phases": record.phases,
        "seconds": time.perf_counter() - start,
    }


def again(path: str, output: str | None) -> None:
    """The measurements of an earlier run beside what is planned now."""
    found = json.loads(Path(path).read_text())
    for row in found["rows"]:
        row["planned"] = planned(Case(**row["case"]), "cuda", found["memory"])
        print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    text = f"`python benchmarks/plan_check.py`\n\nMeasured on {found['setting']}\n\n{table(found['rows'])}"
    if output:
        write_results(output, text, found)
    print(text)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: planned and measured peaks, and the parts that stay."""
    header = ["run", "planned MiB", "measured MiB", "difference", "weights + reference", "optimiser", "gradients",
              "ms a step"]  # fmt: skip
    lines = []
    for row in rows:
        plan, found = row["planned"], row["measured"]
        if "error" in found:
            lines.append([row["title"], f"{plan['allocated'] / MIB:.0f}", found["error"], *[""] * 5])
            continue
        both = []
        for names in (("weights", "reference"), ("optimizer",), ("gradients",)):
            told = sum(plan["static"].get(name, plan["parts"].get(name, 0)) for name in names)
            both.append(f"{told / MIB:.0f} / {sum(found['held'][name] for name in names) / MIB:.0f}")
        off = plan["allocated"] / found["peak"] - 1
        seconds = "" if found["seconds"] is None else f"{1e3 * found['seconds']:.0f}"
        lines.append([row["title"], f"{plan['allocated'] / MIB:.0f}", f"{found['peak'] / MIB:.0f}", f"{off:+.1%}", *both,
                      seconds])  # fmt: skip
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    parser.add_argument("--seconds", type=float, default=220, help="take up no new case after so many")
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--again", metavar="FILE.json", help="measure nothing: plan anew what this file has measured")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.again:
        again(args.again, args.output)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("no CUDA device is there; --tiny tries the command on a CPU")
    start = time.perf_counter()
    memory = float(torch.cuda.get_device_properties(0).total_memory) if device == "cuda" else 80.0 * 2**30
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.machine()
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    setting = f"{name}, {versions}, TRL {'there' if HAS_TRL else 'not there'}"
    command = f"python benchmarks/plan_check.py {' '.join(sys.argv[1:])}"
    rows: list[dict[str, Any]] = []
    for case in cases(args.tiny):
        if time.perf_counter() - start > args.seconds:
            print("time is up", file=sys.stderr)
            break
        row: dict[str, Any] = {"title": case.title, "case": asdict(case), "planned": planned(case, device, memory)}
        try:
            row["measured"] = measure(case, device)
        except torch.OutOfMemoryError:
            row["measured"] = {"error": "out of memory"}
        except Exception as error:  # the other cases are worth having
            traceback.print_exc()
            row["measured"] = {"error": f"{type(error).__name__}: {error}"[:300]}
        rows.append(row)
        print(table(rows[-1:]).splitlines()[-1], f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        text = f"`{command}`\n\n{setting}\n\n{table(rows)}"
        if args.output:
            write_results(args.output, text, {"setting": setting, "memory": memory, "rows": rows})
    print(f"{setting}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
