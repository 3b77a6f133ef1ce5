"""(f) Reward at matched KL: every method tuned alike on one seed, then compared on fresh ones, beside the optimum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from sparsepo.evaluation.frontier import Comparison, Curve, compare, reward_within
from sparsepo.evaluation.tilting import TiltedReference

from .grids import ANCHOR, FRONTIER, PLAIN, Settings, baseline
from .playground_materials import reference_rewards
from .playground_runs import OPTIMUM_PROMPTS, OPTIMUM_SAMPLES
from .running import run_tasks
from .store import Store
from .tasks import MaterialSettings, Task
from .tuning import Rung, successive_halving
from .writing import write_json

KL_BUDGETS = (0.1, 0.25, 0.5)
BETAS = (0.1, 0.25, 0.5, 1.0)
SIMPO_BETAS = (0.5, 1.0, 2.0, 4.0)  # of another kind: as many, so that every method has as many tries
LEARNING_RATES = (2e-4, 4e-4)
RUNGS = (60, 125, 250)
TUNING_TIMES = (0.16, 0.36, 0.64, 1.0)  # shares of training at which tuning judges; the finals judge at FRONTIER
ORACLE = "oracle"


@dataclass(frozen=True)
class Sizes:
    """Of the reference's samples and of the tuning.

    Args:
        prompts, samples: of the reference's samples, from which the optimum is computed.
        rungs: steps of the rungs.
        evaluation_prompts: of tuning; the finals use four times as many.
        draws: of the bootstrap.
    """

    prompts: int = OPTIMUM_PROMPTS
    samples: int = OPTIMUM_SAMPLES
    rungs: tuple[int, ...] = RUNGS
    evaluation_prompts: int = 128
    draws: int = 1000

    def quick(self) -> Sizes:
        """A few seconds."""
        return Sizes(prompts=8, samples=16, rungs=(2, 4), evaluation_prompts=8, draws=20)


# each is one method with its own β; a mask head's learning rate is the library's, a multiple of the policy's
METHODS: dict[str, Settings] = {
    "DPO": baseline("dpo", None),
    "TDPO1": baseline("tdpo1", None),
    "SparsePO": {"mask_gate": "relu"},
    "SparsePO 0.6": {"mask_gate": "relu", "mask_target_sparsity": 0.6},
    "SparsePO reward only": {"mask_gate": "relu", "mask_on": "reward"},
    "SparsePO no fit": {"mask_gate": "relu", **PLAIN},
    "MaPO": baseline("mapo", None),
    ORACLE: {},
    "TDPO2": baseline("tdpo2", None),
    "DPOP": baseline("dpop", None),
    "SimPO": baseline("simpo", None),
}
EFFICIENCY_BASELINES = ("DPO + anchor", "TDPO1 + anchor")  # what sparse masks are to beat
# The baselines once more, held as near to the reference as sparse masks end up: what they reach there
CLOSER_ANCHOR = 0.14
ANCHORED_ONLY = ("SparsePO reward only", "SparsePO no fit")  # variants that are run with the anchor alone
FINALS = ("DPO", "TDPO1", "SparsePO", "SparsePO 0.6", "SparsePO reward only", "SparsePO no fit", "MaPO", ORACLE)


def candidates(method: str, anchor: float, seed: int, quick: bool = False) -> list[Task]:
    """What is tried for a method: every β with every learning rate."""
    betas = SIMPO_BETAS if method == "SimPO" else BETAS
    tries = list(product(betas, LEARNING_RATES))
    tasks = [
        Task(
            label(method, anchor),
            METHODS[method] | {"beta": beta, "kl_anchor": anchor},
            MaterialSettings(seed=seed),
            learning_rate=rate,
            judged_at=TUNING_TIMES,
            oracle=method == ORACLE,
        )
        for beta, rate in (tries[:2] if quick else tries)
    ]
    return [task.quick() for task in tasks] if quick else tasks


def efficiency_baselines() -> tuple[str, ...]:
    """The anchored baselines, tuned and held closer, from which differences of efficiency are taken."""
    return (*EFFICIENCY_BASELINES, *(f"{name} {CLOSER_ANCHOR:g}" for name in EFFICIENCY_BASELINES))


def label(method: str, anchor: float) -> str:
    """A method's name in tables."""
    return f"{method} + anchor" if anchor else method


def score(result: Mapping[str, Any], start: float) -> float:
    """What tuning maximises: the reward within each KL budget, averaged over the budgets."""
    kl = [0.0, *(entry["kl"]["mean"] for entry in result["policy"])]
    reward = [start, *(entry["reward"]["mean"] for entry in result["policy"])]
    return float(np.mean([reward_within(kl, reward, budget) for budget in KL_BUDGETS]))


def tune(
    store: Store,
    methods: Sequence[str],
    anchors: Sequence[float],
    seed: int,
    jobs: int,
    sizes: Sizes,
    quick: bool = False,
) -> dict[str, Any]:
    """Tune β and learning rate of each method by successive halving, the same budget for all.

    Returns:
        What ``tuning.json`` holds: by method's label the winner as a task, its score, and the rungs.
    """
    found: dict[str, Any] = {}
    for method, anchor in product(methods, anchors):  # a method is done before the next one starts
        if method in ANCHORED_ONLY and not anchor:
            continue
        tasks = candidates(method, anchor, seed, quick)
        start = float(reference_rewards(tasks[0].materials, store, sizes.prompts, sizes.samples).mean())

        def evaluate(tried: Sequence[Task], steps: int, start: float = start) -> list[float]:
            runs = [replace(task, steps=steps, evaluation_prompts=sizes.evaluation_prompts) for task in tried]
            run_tasks(runs, store, jobs)
            results = [store.result(run) for run in runs]
            return [float("nan") if result is None else score(result, start) for result in results]

        rungs = successive_halving(tasks, sizes.rungs, evaluate)
        winner, best = rungs[-1].scored[0]
        found[label(method, anchor)] = {
            "winner": replace(winner, steps=sizes.rungs[-1]).to_json(),
            "score": best if best == best else None,
            "rungs": [_rung(rung) for rung in rungs],
        }
        known = read_tuning(store) if (store.folder / "tuning.json").is_file() else {}
        write_json(store.folder / "tuning.json", known | found)
    return found


def _rung(rung: Rung[Task]) -> dict[str, Any]:
    return {
        "steps": rung.budget,
        "scored": [
            {
                "beta": task.settings["beta"],
                "learning_rate": task.learning_rate,
                "score": value if value == value else None,
            }
            for task, value in rung.scored
        ],
    }


def read_tuning(store: Store) -> dict[str, Any]:
    """What tuning found. Raises ``FileNotFoundError`` saying how to make it."""
    path = store.folder / "tuning.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the study 'tuning' with the same --output first.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def tuning_table(found: Mapping[str, Any]) -> str:
    """Markdown: the winner of each method."""
    lines = ["| method | β | learning rate | score | tries |", "|---" * 5 + "|"]
    for name, entry in found.items():
        winner, tries = entry["winner"], " → ".join(str(len(rung["scored"])) for rung in entry["rungs"])
        shown = "–" if entry["score"] is None else f"{entry['score']:.4f}"
        lines.append(f"| {name} | {winner['settings']['beta']:g} | {winner['learning_rate']:g} | {shown} | {tries} |")
    return "\n".join(lines) + "\n"


def final_tasks(store: Store, seeds: Sequence[int], sizes: Sizes, only: Sequence[str] = FINALS) -> list[Task]:
    """The tuned settings on fresh seeds: new model, new pairs, new prompts."""
    names = {label(method, anchor) for method in only for anchor in (0.0, ANCHOR)}
    winners = {name: Task.from_json(entry["winner"]) for name, entry in read_tuning(store).items() if name in names}
    for name in EFFICIENCY_BASELINES:
        if name in winners:
            closer, settings = f"{name} {CLOSER_ANCHOR:g}", winners[name].settings
            winners[closer] = replace(winners[name], label=closer, settings=settings | {"kl_anchor": CLOSER_ANCHOR})
    tuned_on = {task.seed for task in winners.values()}
    if stale := tuned_on & set(seeds):
        raise ValueError(f"--seeds {sorted(stale)} were tuned on; finals need fresh ones.")
    return [
        replace(
            task,
            materials=replace(task.materials, seed=seed),
            keep_samples=True,
            evaluation_prompts=4 * sizes.evaluation_prompts,
            judged_at=FRONTIER if sizes.evaluation_prompts >= Sizes.evaluation_prompts else task.judged_at,
        )
        for seed in seeds
        for task in winners.values()
    ]


Curves = dict[str, dict[int, Curve]]


def final_curves(tasks: Sequence[Task], store: Store, sizes: Sizes) -> tuple[Curves, dict[int, TiltedReference]]:
    """The curves of the methods that are done on every seed, by method and seed, and the optimum of each seed."""
    seeds = {task.seed: task.materials for task in tasks}
    optima = {
        seed: TiltedReference(reference_rewards(own, store, sizes.prompts, sizes.samples))
        for seed, own in seeds.items()
    }
    curves: Curves = {}
    for task in tasks:
        result = store.result(task)
        if result is not None:
            rewards, kls = (np.array([entry[name] for entry in result["policy"]]) for name in ("rewards", "kls"))
            curves.setdefault(task.label, {})[task.seed] = Curve(rewards, kls, optima[task.seed].reference_reward)
    return {name: own for name, own in curves.items() if set(own) == set(seeds)}, optima


def final_comparison(
    curves: Curves, optima: Mapping[int, TiltedReference], draws: int
) -> tuple[str | None, dict[float, dict[str, Comparison]]]:
    """The baseline (DPO, or the first method without it), and by KL budget and method the comparison with it.

    Without any method, (None, {}). Each seed has its own prompts.

    Raises:
        ValueError: a budget that the samples of the reference do not reach.
    """
    base = "DPO" if "DPO" in curves else next(iter(curves), None)
    if base is None:
        return None, {}
    runs = {name: {seed: [curve] for seed, curve in own.items()} for name, own in curves.items()}
    return base, compare(runs, KL_BUDGETS, base, optima=optima, draws=draws, shared_prompts=False).within


def final_tables(base: str | None, comparison: Mapping[float, Mapping[str, Comparison]]) -> str:
    """Markdown, one table a KL budget: reward, share of the optimum's gain, difference from the baseline."""
    parts = []
    for budget, methods in comparison.items():
        lines = [
            f"### Within {budget:g} nats of sequence KL\n",
            f"| method | reward | share of the optimum's gain | minus {base} |",
            "|---" * 4 + "|",
        ]
        lines += [
            f"| {name} | {_interval(own.reward)} | {_interval(own.share)} | {_interval(own.difference)} |"
            for name, own in methods.items()
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def optimum_table(tasks: Sequence[Task], store: Store, sizes: Sizes) -> str:
    """Markdown: reward of the optimal policy at each budget, with its error, by seed."""
    lines = ["| seed | reference | " + " | ".join(f"at {b:g} nats" for b in KL_BUDGETS) + " |"]
    lines.append("|---" * (len(KL_BUDGETS) + 2) + "|")
    for seed, own in sorted({task.seed: task.materials for task in tasks}.items()):
        optimum = TiltedReference(reference_rewards(own, store, sizes.prompts, sizes.samples))
        points = [optimum.at_kl(budget) for budget in KL_BUDGETS]
        cells = [f"{p.reward:.4f} ± {p.reward_se:.4f} ({p.effective_samples:.0f} samples)" for p in points]
        lines.append(f"| {seed} | {optimum.reference_reward:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(values: tuple[float, float, float] | None) -> str:
    return "–" if values is None else f"{values[0]:.4f} [{values[1]:.4f}, {values[2]:.4f}]"
