"""The six benchmarks of the Open LLM Leaderboard, version 2: their tasks, metrics and chance levels.

Source: "Scores Normalization" in the leaderboard's documentation (huggingface.co/docs/leaderboards, page
open_llm_leaderboard/normalization), and the notebook that it links for the numbers of choices.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One number of a benchmark.

    Args:
        task: name in lm-eval.
        metric: lm-eval's name of it.
        choices: among how many answers one is guessed; 0: nothing is gained by guessing.
    """

    task: str
    metric: str
    choices: int

    @property
    def chance(self) -> float:
        """The lower bound of the normalisation."""
        return 1 / self.choices if self.choices else 0.0


@dataclass(frozen=True)
class Benchmark:
    """One column of the leaderboard.

    Args:
        name: as the leaderboard writes it.
        parts: normalised one by one, then averaged; or
        pooled: all parts' documents are one sample, whose score is normalised once.
    """

    name: str
    parts: tuple[Part, ...]
    pooled: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """lm-eval's tasks, each once."""
        return tuple(dict.fromkeys(part.task for part in self.parts))


_BBH = {
    "boolean_expressions": 2,
    "causal_judgement": 2,
    "date_understanding": 6,
    "disambiguation_qa": 3,
    "formal_fallacies": 2,
    "geometric_shapes": 11,
    "hyperbaton": 2,
    "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7,
    "logical_deduction_three_objects": 3,
    "movie_recommendation": 6,
    "navigate": 2,
    "object_counting": 19,
    "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18,
    "ruin_names": 6,
    "salient_translation_error_detection": 6,
    "snarks": 2,
    "sports_understanding": 2,
    "temporal_sequences": 4,
    "tracking_shuffled_objects_five_objects": 5,
    "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3,
    "web_of_lies": 2,
}
_MUSR = {"murder_mysteries": 2, "object_placements": 5, "team_allocation": 3}
_MATH = (
    "algebra",
    "counting_and_prob",
    "geometry",
    "intermediate_algebra",
    "num_theory",
    "prealgebra",
    "precalculus",
)

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        "IFEval",
        (
            Part("leaderboard_ifeval", "inst_level_strict_acc", 0),
            Part("leaderboard_ifeval", "prompt_level_strict_acc", 0),
        ),
    ),
    Benchmark("BBH", tuple(Part(f"leaderboard_bbh_{name}", "acc_norm", count) for name, count in _BBH.items())),
    Benchmark(
        "MATH Lvl 5", tuple(Part(f"leaderboard_math_{name}_hard", "exact_match", 0) for name in _MATH), pooled=True
    ),
    Benchmark(
        "GPQA",
        tuple(Part(f"leaderboard_gpqa_{name}", "acc_norm", 4) for name in ("diamond", "extended", "main")),
        pooled=True,
    ),
    Benchmark("MUSR", tuple(Part(f"leaderboard_musr_{name}", "acc_norm", count) for name, count in _MUSR.items())),
    Benchmark("MMLU-PRO", (Part("leaderboard_mmlu_pro", "acc", 10),)),
)
