"""The product of objectives, masks, tuning and architectures, and a small deterministic subset that covers its pairs."""

from __future__ import annotations

import heapq
import random
from dataclasses import asdict, dataclass, replace
from itertools import combinations, cycle, product
from typing import Any

import pytest
from peft import LoraConfig

from sparsepo.objectives import OBJECTIVES
from sparsepo.training.config import GATE_NAMES
from tests.support import ARCHITECTURES

# name → the settings that ask for the mask; "none" is that of objectives that read no mask
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "learned_common": {"mask": "learned"},
    "learned_independent": {"mask": "learned", "mask_sharing": "independent"},
    "learned_reward": {"mask": "learned", "mask_on": "reward"},
    "learned_kl": {"mask": "learned", "mask_on": "kl"},
    "learned_last": {"mask": "learned", "mask_layers": "last"},
    "learned_two_layer": {"mask": "learned", "mask_map": "two_layer", "mask_map_width": 12},
    "learned_mlp_fit": {
        "mask": "learned",
        "mask_map": "mlp",
        "mask_log_ratio_weight": 1.0,
        "mask_sharing": "independent",
    },
    "activation": {"mask": "activation"},
    "dense": {"mask": "dense"},
    "random": {"mask": "random", "mask_random_sparsity": 0.25},
    "data": {"mask": "data"},
}
# of learned masks; "-": of the others. Every gate meets every learned mask and way of training, not every architecture:
# a gate never sees one, and the cases would double
GATES = ("-", *GATE_NAMES)
TUNING = ("full", "lora")
CHECKPOINTING = (False, True)

# Said of every small adapter on fused experts and on GPT-2's Conv1D, and of no interest here
QUIET_PEFT = [
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]
EXPERTS = ("mixtral", "qwen3_moe")
# PEFT refuses Mamba's out_proj, whose weight the fused kernel reads past the adapter
_LORA_TARGETS: dict[str, Any] = {"mamba": ["in_proj", "x_proj"]}


@dataclass(frozen=True)
class Case:
    """One run: what is trained, how, and on which architecture."""

    objective: str
    mask: str
    gate: str
    tuning: str
    architecture: str
    checkpointing: bool

    def __str__(self) -> str:
        checkpointing = "-checkpointing" if self.checkpointing else ""
        mask = self.mask if self.gate == "-" else f"{self.mask}-{self.gate}"
        return f"{self.objective}-{mask}-{self.tuning}-{self.architecture}{checkpointing}"

    @property
    def is_valid(self) -> bool:
        """Whether the objective reads this mask, and the mask has a gate or none."""
        if self.is_learned == (self.gate == "-"):
            return False
        if self.objective == "sparsepo":
            return self.mask != "none"
        return self.mask == ("activation" if self.objective == "mapo" else "none")

    @property
    def is_learned(self) -> bool:
        """Whether the mask has parameters."""
        return self.mask.startswith("learned")


def whole_product() -> list[Case]:
    """All valid cases but for gates, which go round, in a fixed order; checkpointing is on in every fourth."""
    plain = [
        Case(objective, mask, "relu" if mask.startswith("learned") else "-", tuning, architecture, False)
        for objective, mask, tuning, architecture in product(OBJECTIVES, MASKS, TUNING, ARCHITECTURES)
    ]
    valid = [case for case in plain if case.is_valid]
    gates = cycle(GATE_NAMES)
    return [
        replace(case, gate=next(gates) if case.is_learned else "-", checkpointing=index % 4 == 0)
        for index, case in enumerate(valid)
    ]


def covering_set() -> list[Case]:
    """Valid cases that together hold every pair of values that some valid case holds, chosen greedily.

    A case's gain (pairs not yet held) only ever falls, so that a heap of outdated gains finds the next best case.
    Ties go by a fixed shuffle, which spreads full training and LoRA evenly, and to the cases without checkpointing.
    """
    cases = [Case(*values) for values in product(OBJECTIVES, MASKS, GATES, TUNING, ARCHITECTURES, CHECKPOINTING)]
    cases = [case for case in cases if case.is_valid]
    random.Random(0).shuffle(cases)
    cases.sort(key=lambda case: case.checkpointing)
    pairs = [pairs_of(case) for case in cases]
    missing = set().union(*pairs)
    heap = [(-len(held), index) for index, held in enumerate(pairs)]
    heapq.heapify(heap)
    chosen = []
    while missing:
        _, index = heapq.heappop(heap)
        gain = len(pairs[index] & missing)
        if heap and -gain > heap[0][0]:
            heapq.heappush(heap, (-gain, index))
            continue
        chosen.append(cases[index])
        missing -= pairs[index]
    return chosen


def pairs_of(case: Case) -> set[tuple[Any, ...]]:
    """Pairs of (factor, value) that a case holds, but for gates with architectures."""
    pairs = combinations(asdict(case).items(), 2)
    return {pair for pair in pairs if {pair[0][0], pair[1][0]} != {"gate", "architecture"}}


def lora(architecture: str, **settings: Any) -> LoraConfig:
    """A small adapter on every linear layer that the architecture lets PEFT adapt, experts included."""
    targets = _LORA_TARGETS.get(architecture, "all-linear")
    if settings.get("lora_dropout") and architecture in EXPERTS:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]  # PEFT adapts experts without dropout only
    return LoraConfig(
        **{
            "r": 2,
            "lora_alpha": 8,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            **settings,
        }
    )
