"""How rows are put into batches changes nothing: neither losses and gradients, nor what is logged."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sparsepo import SparsePOTrainer
from tests.support import perturbed, tiny_model

from .running import (
    PLAIN_HEAD,
    assert_close,
    build,
    logged,
    mask_state,
    moved,
    policy_state,
    prepared_rows,
    run_config,
    steps_of,
    without_clocks,
)

# Sums in another order: float32's rounding, and what three steps make of it
RTOL, ATOL = 2e-4, 2e-6


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 11)


def trained(folder: Path, rows: Dataset, lora: bool = False, **settings: Any) -> SparsePOTrainer:
    """Two epochs of two steps over eleven rows: eight, then the three that are left. Plain gradient steps, which show
    gradients as they are (Adam would enlarge the rounding of those near zero)."""
    config = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.3, **settings}
    reference = tiny_model("gpt2")
    models: dict[str, Any] = {"model": reference}
    if not lora:
        models = {"model": perturbed(reference), "ref_model": reference}
    trainer = build(run_config(folder, **config), rows, lora=lora, **models)
    trainer.train()
    return trainer


def assert_same_run(one: SparsePOTrainer, other: SparsePOTrainer) -> None:
    assert_close(policy_state(one), policy_state(other), RTOL, ATOL)
    if one.masker is not None:
        assert_close(mask_state(one), mask_state(other), RTOL, ATOL)
    assert_same_log(one, other)


def assert_same_log(one: SparsePOTrainer, other: SparsePOTrainer, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    entries = [list(steps_of(logged(trainer))) for trainer in (one, other)]
    assert len(entries[0]) == len(entries[1]) == one.state.global_step
    for mine, theirs in zip(*entries, strict=True):
        for entry in (mine, theirs):
            entry.pop("epoch")  # Trainer counts batches
        assert_close(mine, theirs, rtol, atol)


CASES: dict[str, dict[str, Any]] = {
    "learned-dropout": {"mask_dropout": 0.3, "mask_learning_rate": 0.3},
    "independent-l1-anchor": {"mask_sharing": "independent", "mask_l1_reward": 0.01, "mask_l1_kl": 0.02},
    "random-dense-scorer": {"mask": "random", "mask_random_sparsity": 0.4, "scorer": "dense"},
    "data": {"mask": "data"},
    "mapo": {"objective": "mapo"},
    "tdpo2": {"objective": "tdpo2", "sft_weight": 0.1},
    "simpo": {"objective": "simpo"},
    "normalised-target": {"mask_gate": "normalised", "mask_target_sparsity": 0.5, "mask_sparsity_warmup": 2},
    "stochastic": {**PLAIN_HEAD, "mask_gate": "hard_concrete", "mask_l1_reward": 0.05, "mask_sharing": "independent"},
    "entmax": {"mask_gate": "entmax", "mask_learning_rate": 3.0},
    "lora-dropout": {**PLAIN_HEAD, "lora": True, "mask_dropout": 0.3, "mask_learning_rate": 3.0},
}


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_equal_one_batch(tmp_path: Path, rows: Dataset, case: str) -> None:
    """8 + 3 rows against 4 + 4, 3 and 2 + 2 + 2 + 2, 2 + 1."""
    whole = trained(tmp_path, rows, **CASES[case], per_device_train_batch_size=8)
    for size in (4, 2):
        parts = trained(
            tmp_path,
            rows,
            **CASES[case],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        assert parts.state.global_step == 4
        assert_same_run(whole, parts)
    start = policy_state(build(run_config(tmp_path), rows, lora=CASES[case].get("lora", False)))
    assert moved(start, policy_state(whole)) > 1e-3


def test_what_the_steps_do_is_not_lost_in_the_tolerance(tmp_path: Path, rows: Dataset) -> None:
    """Guards the test above: the mean over micro-batches of 2 and 1 rows, or other noise, would be noticed."""
    one = trained(tmp_path, rows, mask_dropout=0.3, per_device_train_batch_size=8)
    other = trained(tmp_path, rows, mask_dropout=0.3, per_device_train_batch_size=8, seed=43)
    with pytest.raises(AssertionError):
        assert_same_run(one, other)
    averaged = build_averaging(tmp_path, rows)
    averaged.train()
    plain = trained(tmp_path, rows, per_device_train_batch_size=8)
    with pytest.raises(AssertionError):
        assert_close(policy_state(averaged), policy_state(plain), RTOL, ATOL)


def build_averaging(folder: Path, rows: Dataset) -> SparsePOTrainer:
    """A trainer that averages the means of micro-batches, as Trainer would by default."""
    reference = tiny_model("gpt2")
    config = run_config(
        folder,
        max_steps=4,
        optim="sgd",
        learning_rate=0.3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    trainer = build(config, rows, model=perturbed(reference), ref_model=reference)
    trainer._get_num_items_in_batch = lambda *_: None
    trainer.loss_is_scaled_for_ga = False
    return trainer


@pytest.mark.parametrize("case", ["learned-dropout", "random-dense-scorer", "data", "lora-dropout"])
def test_the_order_of_rows_in_a_batch_changes_nothing(tmp_path: Path, rows: Dataset, case: str) -> None:
    """Rows keep their ``row_id`` and with it their noise."""
    settings = {**CASES[case], "per_device_train_batch_size": 11, "max_steps": 3}
    one = trained(tmp_path, rows, **settings)
    other = trained(tmp_path, rows.select([7, 2, 10, 0, 5, 9, 1, 8, 3, 6, 4]), **settings)
    assert_same_run(one, other)


def test_neighbours_change_nothing_but_padding(tmp_path: Path, rows: Dataset) -> None:
    """Scores of a pair alone and among others."""
    trainer = trained(tmp_path, rows, mask="random", mask_sharing="independent", per_device_train_batch_size=8)
    together = trainer.score(trainer.data_collator(list(rows)))
    for index, row in enumerate(rows):
        alone = trainer.score(trainer.data_collator([row]))
        for side in ("chosen", "rejected"):
            mine, theirs = getattr(alone, side), getattr(together, side)
            keep, among = mine.response_mask[0], theirs.response_mask[index]
            for name in ("policy_logps", "ref_logps", "kl", "reward_mask", "kl_mask"):
                torch.testing.assert_close(
                    getattr(mine, name)[0][keep], getattr(theirs, name)[index][among], rtol=1e-4, atol=1e-5
                )


# ---- metrics ----


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_hand(trainer: SparsePOTrainer, rows: Dataset) -> dict[str, float]:
    """All of sparsepo's metrics over rows, from per-token scores of one row at a time, in Python's own numbers."""
    beta = trainer.objective.beta
    found: dict[str, list[float]] = defaultdict(list)  # per row
    tokens: dict[str, list[float]] = defaultdict(list)  # per token
    for row in rows:
        batch = trainer.data_collator([row])
        scores = trainer.score(batch)
        sides = {side: per_token(getattr(scores, side)) for side in ("chosen", "rejected")}
        reward = {}
        for side, (logps, ref, kl, on_reward, on_kl) in sides.items():
            terms = zip(logps, ref, kl, on_reward, on_kl, strict=True)
            reward[side] = beta * sum(u * (p - q) + d * k for p, q, k, u, d in terms)
            found[f"rewards/{side}"].append(reward[side])
            found[f"logps/{side}"].append(sum(logps))
            found[f"kl/{side}"].append(sum(kl))
            found[f"kl_masked/{side}"].append(sum(d * k for d, k in zip(on_kl, kl, strict=True)))
            tokens[f"kl/{side}_per_token"] += kl
            tokens[f"kl_masked/{side}_per_token"] += [d * k for d, k in zip(on_kl, kl, strict=True)]
            for kind, mask in (("reward", on_reward), ("kl", on_kl)):
                for suffix in ("", f"_{side}"):
                    tokens[f"mask/{kind}/mean{suffix}"] += mask
                    tokens[f"mask/{kind}/sparsity{suffix}"] += [float(m == 0) for m in mask]
                    found[f"mask/{kind}/dead{suffix}"].append(float(max(mask) == 0))
                    tokens[f"mask/{kind}/max{suffix}"] += mask
            tokens["mask/effective_beta"] += [beta * m for m in on_reward]
        margin = reward["chosen"] - reward["rejected"]
        found["rewards/margins"].append(margin)
        found["rewards/accuracies"].append(float(margin > 0))
        found["loss"].append(math.log1p(math.exp(-margin)))
        for name, values in logit_statistics(trainer, batch).items():
            tokens[name] += values
    result = {name: mean(values) for name, values in (found | tokens).items()}
    return result | {name: max(tokens[name]) for name in tokens if "/max" in name}


def per_token(side: Any) -> list[list[float]]:
    keep = side.response_mask[0]
    names = ("policy_logps", "ref_logps", "kl", "reward_mask", "kl_mask")
    return [getattr(side, name)[0][keep].tolist() for name in names]


def logit_statistics(trainer: SparsePOTrainer, batch: dict[str, Any]) -> dict[str, list[float]]:
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    keep = batch["completion_mask"][:, 1:].bool()
    probabilities = logits.double().softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    hits = (logits.argmax(-1) == batch["input_ids"][:, 1:]).double()
    return {
        "entropy": entropy[keep].tolist(),
        "logits/chosen": logits.mean(-1)[0][keep[0]].tolist(),
        "logits/rejected": logits.mean(-1)[1][keep[1]].tolist(),
        "mean_token_accuracy": hits[0][keep[0]].tolist(),
    }


HAND_SETTINGS = {"mask": "random", "mask_sharing": "independent", "mask_random_sparsity": 0.8, "beta": 0.7}


def hand_trainer(folder: Path, rows: Dataset, **settings: Any) -> SparsePOTrainer:
    reference = tiny_model("gpt2")
    arguments = {"eval_dataset": settings.pop("eval_dataset")} if "eval_dataset" in settings else {}
    config = run_config(folder, **HAND_SETTINGS, **settings)
    return build(config, rows, model=perturbed(reference, scale=0.1), ref_model=reference, **arguments)


@pytest.mark.parametrize("size", [1, 3, 4, 11])
def test_evaluation_metrics_are_those_of_the_whole_set(tmp_path: Path, rows: Dataset, size: int) -> None:
    """Batches of unequal numbers of rows and tokens: 3 + 3 + 3 + 2, 4 + 4 + 3."""
    trainer = hand_trainer(tmp_path, rows, per_device_eval_batch_size=size, eval_dataset=rows)
    expected = by_hand(trainer, rows)
    metrics = trainer.evaluate()
    found = {name.removeprefix("eval_"): value for name, value in without_clocks(metrics).items() if name != "epoch"}
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # means of rows, of batches and of tokens differ on these rows, as do unequal masks
    assert expected["mask/reward/dead"] > 0
    assert expected["mask/reward/mean_chosen"] != expected["mask/reward/mean_rejected"]
    assert 0 < expected["rewards/accuracies"] < 1


@pytest.mark.parametrize("size", [11, 4])
def test_training_metrics_are_those_of_the_step(tmp_path: Path, rows: Dataset, size: int) -> None:
    """Logged before the first update, over 11 rows in one batch and in 4 + 4 + 3."""
    trainer = hand_trainer(
        tmp_path, rows, per_device_train_batch_size=size, gradient_accumulation_steps=-(-11 // size), max_steps=1
    )
    expected = by_hand(trainer, rows)
    tokens = sum(int(trainer.data_collator([row])["attention_mask"].sum()) for row in rows)
    trainer.train()
    entry = next(steps_of(logged(trainer)))
    assert entry.pop("num_tokens") == tokens
    health = [name for name in entry if name.startswith("mask/health/")]
    for name in ("grad_norm", "learning_rate", "epoch", "step", *health):
        entry.pop(name)
    assert_close(entry, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip_masked", [True, False])
def test_several_steps_between_logs_are_averaged_by_tokens(tmp_path: Path, rows: Dataset, skip_masked: bool) -> None:
    """With a learning rate of zero the average over an epoch's steps is that over its rows. With ``skip_masked`` what
    needs every token comes from the logged step alone."""
    trainer = hand_trainer(
        tmp_path,
        rows,
        per_device_train_batch_size=4,
        max_steps=3,
        logging_steps=3,
        learning_rate=0.0,
        skip_masked=skip_masked,
    )
    expected = by_hand(trainer, rows)
    trainer.train()
    (entry,) = steps_of(logged(trainer))
    names = expected.keys() - {"loss"}  # Trainer's: the mean of the steps' losses
    if skip_masked:
        names = {name for name in names if name.split("/")[0] in ("rewards", "mask", "kl_masked")}
    for name in names:
        assert entry[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_several_evaluation_sets_keep_their_own_averages(tmp_path: Path, rows: Dataset) -> None:
    few = rows.select(range(3))
    trainer = hand_trainer(tmp_path, rows, eval_dataset={"all": rows, "few": few})
    metrics = trainer.evaluate()
    for name, part in (("all", rows), ("few", few)):
        expected = by_hand(trainer, part)
        for key in ("loss", "rewards/margins", "mask/kl/sparsity", "kl/chosen_per_token"):
            assert metrics[f"eval_{name}_{key}"] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key


def test_evaluation_in_training_neither_reads_nor_moves_training_averages(tmp_path: Path, rows: Dataset) -> None:
    few = rows.select(range(3))
    settings = {"max_steps": 4, "logging_steps": 4, "per_device_train_batch_size": 4}
    quiet = hand_trainer(tmp_path, rows, **settings)
    quiet.train()
    asked = hand_trainer(tmp_path, rows, **settings, eval_dataset=few, eval_strategy="steps", eval_steps=1)
    asked.train()
    assert_close(next(steps_of(logged(quiet))), next(steps_of(logged(asked))), rtol=0, atol=0)
    evaluations = [entry for entry in logged(asked) if "eval_loss" in entry]
    assert len(evaluations) == 4
    assert evaluations[0]["eval_loss"] != evaluations[3]["eval_loss"]
