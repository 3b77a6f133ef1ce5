"""One run on the playground: train a setting, then judge its masks and its policy."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback

from sparsepo.evaluation.controls import head_numbers, random_scores, untrained_masks
from sparsepo.evaluation.kl import sequence_kl
from sparsepo.evaluation.reward_model import gradient_control
from sparsepo.evaluation.tilting import TiltedReference
from sparsepo.evaluation.token_table import SIDES, Batch, Description, ScoredBatch, TokenTable
from sparsepo.masks import LearnedMask
from sparsepo.playground.pairs import sample_responses
from sparsepo.playground.yardstick import token_table

from .judging import MASKS, Ranking, health_of, last_values, rank, summary_of_heads
from .playground_materials import EVALUATION_STREAM, Materials, Rows, get_materials, reference_rewards, reward_model_of
from .store import Store
from .tasks import Task
from .trainers import build_trainer
from .writing import write_json

UNTRAINED_HEADS = 40
# of the reference, for the optimum
OPTIMUM_PROMPTS, OPTIMUM_SAMPLES = 256, 64
# selections of tokens that are ranked: arguments of TokenTable.ranking
SELECTIONS: dict[str, dict[str, str]] = {
    "all": {},
    "open_class": {"within": "open_class"},
    **{side: {"side": side} for side in SIDES},
    **{f"{side}_open_class": {"side": side, "within": "open_class"} for side in SIDES},
    "held_out_words": {"positives": "held_out"},
    "seen_words": {"positives": "seen"},
    "held_out_words_open_class": {"positives": "held_out", "within": "open_class"},
}
TIED_CEILING = "ceiling_at_its_sparsity"
GRADIENT = "gradient_times_input"
HEAD_SELECTIONS = ("all", "open_class")  # on which controls that take long are ranked


def run_task(task: Task, store: Store) -> dict[str, Any]:
    """Train and judge one run.

    Returns:
        JSON types: ``masks`` (size and sparsity), ``ranking`` (AUC and average precision by score and selection of
        tokens), ``controls`` (40 untrained heads; gradient × input of a reward model), ``share_of_ceiling``, ``health``,
        ``policy`` (reward and sequence KL with standard errors at each time of judging), ``log`` (the values logged
        last), ``seconds``.
    """
    materials = get_materials(task.materials, store)
    start = time.perf_counter()
    reference = materials.model()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            materials.model(),
            materials.model(),
            materials.tokenizer,
            _columns(materials.train_rows, task, materials),
            _columns(materials.held_out_rows, task, materials),
            task.settings | ({"mask": "data"} if task.oracle else {}),
            output_dir=folder,
            steps=task.steps,
            batch_size=task.batch_size,
            learning_rate=task.learning_rate,
            seed=task.seed,
        )
        judge = PolicyJudge(task, materials, reference)
        trainer.add_callback(judge)
        trainer.train()
        batches = [dict(batch) for batch in trainer.get_eval_dataloader()]
        table = token_table(
            materials.world,
            materials.tokenizer,
            reference,
            ((batch, trainer.score(batch)) for batch in batches),
            _random_control,
            _head_scores(trainer, reference),
        )
        _add_tied_ceiling(table)
        ranking = rank(table, SELECTIONS)
        position = task.settings.get("mask_position") or "predicting"
        result = {
            "train_pairs": len(materials.train_rows),
            "masks": {name: table.mask_summary(name) for name in MASKS if name in table.scores},
            "ranking": ranking,
            "share_of_ceiling": share_of_ceiling(ranking) if position == "predicting" else {},
            "controls": _controls(materials, reference, trainer, batches, position),
            "health": health_of(trainer),
            "policy": with_share_of_optimum(judge.results, optimum_of(task, store)),
            "log": last_values(trainer.state.log_history),
        }
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def _columns(rows: Rows, task: Task, materials: Materials) -> Rows:
    kept = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    if task.oracle:
        for row in kept:
            for side in SIDES:  # the end token, which a response's words leave out, gets weight 0
                row[f"{side}_weights"] = [float(m) for m in materials.world.preference_marks(row[side].split())]
    return kept


class PolicyJudge(TrainerCallback):
    """Samples the policy at given times of its training; the run itself is not touched by it."""

    def __init__(self, task: Task, materials: Materials, reference: Any) -> None:
        self.task, self.materials, self.reference = task, materials, reference
        self.steps = {math.ceil(share * task.steps) for share in task.judged_at}
        self.results: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge the policy where it is time."""
        if state.global_step in self.steps:
            entry = judge_policy(kwargs["model"], self.reference, self.materials, self.task)
            self.results.append({"step": state.global_step, **entry})


def optimum_of(task: Task, store: Store) -> TiltedReference:
    """The optimal policies of a seed's reference, from its samples on the first prompts that policies are judged on."""
    prompts = min(task.evaluation_prompts, OPTIMUM_PROMPTS)
    return TiltedReference(reference_rewards(task.materials, store, prompts, OPTIMUM_SAMPLES))


def with_share_of_optimum(policy: list[dict[str, Any]], optimum: TiltedReference) -> list[dict[str, Any]]:
    """Each judgement with ``share_of_optimum``: its gain over the reference as a part of the largest at its KL.

    Rewards at different KL do not compare; these shares do. None where the policy is farther away than the samples of the
    reference can show, or where there is nothing to gain.
    """

    def share(entry: dict[str, Any]) -> float | None:
        try:
            best = optimum.at_kl(entry["kl"]["mean"]).reward
        except ValueError:
            return None
        gain = best - optimum.reference_reward
        return (entry["reward"]["mean"] - optimum.reference_reward) / gain if gain > 0 else None

    return [{**entry, "share_of_optimum": share(entry)} for entry in policy]


def judge_policy(model: Any, reference: Any, materials: Materials, task: Task) -> dict[str, Any]:
    """Reward and sequence KL of fresh responses, one a prompt, so that they are independent."""
    world = materials.world
    prompts = world.prompts(task.evaluation_prompts, task.seed, EVALUATION_STREAM)
    groups = sample_responses(model, materials.tokenizer, prompts, samples=1, seed=task.seed)
    samples = [group[0] for group in groups]
    kl = sequence_kl(model, reference, samples, batch_size=256).numpy()
    reward = np.array([world.reward(sample.text) for sample in samples])
    result = {
        "reward": mean_and_error(reward),
        "kl": mean_and_error(kl),
        "length": float(np.mean([len(sample.token_ids) for sample in samples])),
        "finished": float(np.mean([sample.finished for sample in samples])),
    }
    if task.keep_samples:
        result |= {"rewards": np.round(reward, 5).tolist(), "kls": np.round(kl, 5).tolist()}
    return result


def mean_and_error(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and its standard error (None for a single value)."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "se": error}


def share_of_ceiling(ranking: Ranking) -> dict[str, float | None]:
    """(AUC − ½) / (ceiling's AUC − ½) of the reward mask by selection of tokens; None where there is no such ratio."""
    if "reward_mask" not in ranking:
        return {}
    shares: dict[str, float | None] = {}
    for name, ceiling in ranking["ceiling"].items():
        mask = ranking["reward_mask"][name]
        known = mask is not None and ceiling is not None and ceiling["auc"] > 0.5
        shares[name] = (mask["auc"] - 0.5) / (ceiling["auc"] - 0.5) if known and mask and ceiling else None
    return shares


def _head_scores(trainer: Any, reference: Any) -> Description:
    """The heads' numbers before the gate, where masks are learned."""

    def describe(batch: Batch) -> dict[str, Tensor]:
        masker = trainer.masker
        return head_numbers(masker, reference, batch) if isinstance(masker, LearnedMask) else {}

    return describe


def _add_tied_ceiling(table: TokenTable) -> None:
    """The ceiling of a mask with as many zeros: exact zeros tie, which costs AUC whatever the mask knows."""
    if "reward_mask" in table.scores:
        ceiling, zeros = table.scores["ceiling"], table.scores["reward_mask"] == 0
        threshold = np.quantile(ceiling, zeros.mean())
        table.scores[TIED_CEILING] = np.where(ceiling > threshold, ceiling, 0.0)


def _random_control(batch: Batch) -> dict[str, Tensor]:
    return {"random": random_scores(batch)}


def _controls(
    materials: Materials, reference: Any, trainer: Any, batches: list[Batch], position: str
) -> dict[str, Any]:
    """What needs no mask but much time, on this seed's held-out pairs: computed once a seed and reading position.

    Returns:
        ``untrained``: AUC of untrained heads by selection of tokens; ``gradient_times_input``: as a row of ``ranking``.
    """
    path = materials.folder / f"controls_{position}.json"
    if not path.is_file():
        write_json(path, _rank_controls(materials, reference, trainer, batches, position))
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _rank_controls(
    materials: Materials, reference: Any, trainer: Any, batches: list[Batch], position: str
) -> dict[str, Any]:
    def describe(batch: Batch) -> dict[str, Tensor]:
        masks = untrained_masks(reference, batch, range(UNTRAINED_HEADS), position)
        return {f"untrained_{number}": mask for number, mask in enumerate(masks)}

    def scored() -> Iterator[ScoredBatch]:
        for batch in batches:
            yield batch, trainer.score(batch)

    rewards = gradient_control(reward_model_of(materials))
    table = token_table(materials.world, materials.tokenizer, reference, scored(), describe, rewards)
    names = [f"untrained_{number}" for number in range(UNTRAINED_HEADS)]
    return {
        "untrained": {
            selection: summary_of_heads(table, names, SELECTIONS[selection]) for selection in HEAD_SELECTIONS
        },
        GRADIENT: {name: table.ranking(GRADIENT, **SELECTIONS[name]) for name in HEAD_SELECTIONS},
    }
