"""The mask's course: target sparsity in real runs, hold, schedules of L1 weight and learning rate, and resuming in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from sparsepo import LearnedMask, SparsePOTrainer, load_mask
from sparsepo.training.schedules import MaskSchedule, steps_of

from .running import (
    PLAIN_HEAD,
    assert_close,
    assert_same,
    build,
    logged,
    mask_state,
    moved,
    policy_state,
    prepared_rows,
    run_config,
)
from .running import steps_of as entries_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 24)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("heldout"), 48, seed=1)


class EachStep(TrainerCallback):
    """Keeps what a function returns after each step."""

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(self.look())


# ---- target sparsity ----


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        # 24 pairs, thirty times each: with the fit the head would learn them by heart, and held-out shares differ
        (0.3, {"mask_gate": "normalised", "mask_activation": "leaky", **PLAIN_HEAD}),
        (0.3, {"mask_gate": "clamped", "mask_learning_rate": 3e-3}),
        (0.6, {"mask_gate": "relu"}),
        (0.8, {"mask_gate": "normalised", "lr_scheduler_type": "cosine"}),
        (0.8, {"mask_gate": "binary", "mask_hold_steps": 5}),
    ],
    ids=str,
)
def test_the_target_is_reached_and_held(
    tmp_path: Path, rows: Dataset, heldout: Dataset, target: float, settings: dict[str, Any]
) -> None:
    config = run_config(
        tmp_path, **{"max_steps": 60, "per_device_train_batch_size": 12, "mask_target_sparsity": target, **settings}
    )
    trainer = build(config, rows, eval_dataset=heldout)
    assert trainer.objective.kl_anchor == 0.1
    trainer.train()
    entries = list(entries_of(logged(trainer)))
    late = [entry["mask/reward/sparsity"] for entry in entries[40:]]
    assert sum(late) / len(late) == pytest.approx(target, abs=0.05)
    assert entries[0]["mask/reward/sparsity"] < 0.1  # from ones it began dense
    assert entries[-1]["mask/reward/target_sparsity"] == pytest.approx(target)
    assert entries[-1]["mask/reward/dead"] < 0.5
    # unseen responses, without the controller
    assert trainer.evaluate()["eval_mask/reward/sparsity"] == pytest.approx(target, abs=0.05)
    # β is not lost: kept tokens count about as much as at the start
    kept = entries[-1]["mask/reward/mean"] / (1 - entries[-1]["mask/reward/sparsity"])
    assert 0.5 < kept < 2 or settings["mask_gate"] == "normalised"
    if settings["mask_gate"] == "normalised":
        assert entries[-1]["mask/reward/mean"] == pytest.approx(1, abs=entries[-1]["mask/reward/dead"] + 1e-4)


def test_reward_and_kl_have_targets_of_their_own(tmp_path: Path, rows: Dataset) -> None:
    config = run_config(
        tmp_path,
        max_steps=40,
        per_device_train_batch_size=12,
        mask_sharing="independent",
        mask_activation="leaky",
        mask_target_sparsity_reward=0.7,
        mask_target_sparsity_kl=0.2,
        mask_sparsity_warmup=10,
    )
    trainer = build(config, rows)
    trainer.train()
    late = list(entries_of(logged(trainer)))[20:]
    for kind, target in (("reward", 0.7), ("kl", 0.2)):
        assert sum(entry[f"mask/{kind}/sparsity"] for entry in late) / len(late) == pytest.approx(target, abs=0.05)


def test_the_sample_of_tokens_does_not_depend_on_batching(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that looks at some of the tokens looks at the same ones in one batch and in four."""
    monkeypatch.setattr("sparsepo.training.mask_control.SAMPLE_TOKENS", 20)
    found = []
    for size in (8, 2):
        own = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 8 // size,
            "mask_target_sparsity": 0.5,
        }
        own |= {
            "mask_sharing": "independent",
            "optim": "sgd",
            "learning_rate": 0.01,
            "mask_sparsity_warmup": 1,
            **PLAIN_HEAD,
        }
        trainer = build(run_config(tmp_path, **own), rows)
        counts: list[int] = []
        for name, controller in trainer.controllers.items():
            trainer.controllers[name] = Watched(controller, counts)
        trainer.train()
        assert 0 < min(counts) <= max(counts) < 40  # about twenty of some hundred
        found.append((counts, mask_state(trainer)))
    assert found[0][0] == found[1][0]
    assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


class Watched:
    """A controller that notes how many tokens it is shown."""

    def __init__(self, controller: Any, counts: list[int]) -> None:
        self.controller, self.counts = controller, counts

    def update(self, head: Any, before: torch.Tensor, after: torch.Tensor, progress: float) -> float:
        assert len(before) == len(after)
        self.counts.append(len(before))
        return self.controller.update(head, before, after, progress)


def test_what_is_saved_is_what_was_trained(tmp_path: Path, rows: Dataset) -> None:
    trainer = build(run_config(tmp_path, max_steps=6, mask_target_sparsity=0.5, mask_sparsity_warmup=2), rows)
    trainer.train()
    trainer.save_model()
    head = load_mask(tmp_path).heads["shared"]
    assert float(head.offset) != 0
    assert float(head.scale) != 1
    assert_same(dict(load_mask(tmp_path).state_dict()), mask_state(trainer))


def test_a_mask_handed_over_is_steered_from_where_it_is(tmp_path: Path, rows: Dataset) -> None:
    mask = LearnedMask(32, 2, init="ones", gate="normalised")
    mask.heads["shared"].start_sparsity.fill_(0.7)  # of an earlier run
    trainer = build(run_config(tmp_path, max_steps=4, mask_target_sparsity=0.5), rows, mask=mask)
    trainer.train()
    assert float(mask.heads["shared"].start_sparsity) < 0.1
    assert float(mask.heads["shared"].offset) > 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_sharing": "independent", "mask_target_sparsity": 0.5},
        {"mask_gate": "hard_concrete", "mask_target_sparsity": 0.4, "mask_hold_steps": 2, "mask_dropout": 0.2},
        {
            "mask_gate": "gumbel_sigmoid",
            "mask_l1_reward": 0.05,
            "mask_l1_warmup": 4,
            "mask_lr_scheduler_type": "cosine",
            "mask_warmup_steps": 2,
            "mask_hold_steps": 1,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("cut", [2, 4])
def test_resuming_is_bit_for_bit(tmp_path: Path, rows: Dataset, settings: dict[str, Any], cut: int) -> None:
    """Interrupted while the mask is held or the target still rises, and after."""
    own = {"save_strategy": "steps", "save_steps": cut, "max_steps": 6, "gradient_accumulation_steps": 2, **settings}
    whole = build(run_config(tmp_path / "whole", **own), rows)
    start = mask_state(whole)
    whole.train()
    resumed = build(run_config(tmp_path / "resumed", **own), rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{cut}"))
    assert_same(policy_state(resumed), policy_state(whole))
    assert_same(mask_state(resumed), mask_state(whole))
    assert_same(resumed.lr_scheduler.state_dict(), whole.lr_scheduler.state_dict())
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert_same(logged(resumed, after=cut)[:-1], logged(whole, after=cut)[:-1])
    assert moved(start, mask_state(whole)) > 1e-3


# ---- hold, L1 warm-up, learning rate ----


@pytest.mark.parametrize("hold", [3, 0.5])
def test_a_held_mask_stays_at_its_start_while_the_policy_trains(tmp_path: Path, rows: Dataset, hold: float) -> None:
    config = run_config(tmp_path, max_steps=6, mask_hold_steps=hold, mask_target_sparsity=0.5, mask_sparsity_warmup=1)
    trainer = build(config, rows)

    def mask_now() -> dict[str, torch.Tensor]:
        # how large log-ratios are is watched all the while: the fit begins with it
        return {name: value for name, value in mask_state(trainer).items() if not name.endswith("signal_size")}

    look = EachStep(lambda: (mask_now(), policy_state(trainer)))
    trainer.callback_handler.callbacks.insert(0, look)  # before the controller
    start, policy = mask_now(), policy_state(trainer)
    trainer.train()
    for step, (mask, now) in enumerate(look.seen, start=1):
        assert moved(policy, now) > 1e-4
        assert (moved(start, mask) == 0) == (step <= 3), step


def test_the_l1_weight_rises(tmp_path: Path, rows: Dataset) -> None:
    trainer = build(
        run_config(tmp_path, max_steps=6, mask_l1_reward=0.2, mask_l1_kl=0.1, mask_l1_warmup=2, mask_hold_steps=2), rows
    )
    seen: list[tuple[float, float]] = []
    step_objective = trainer._step_objective

    def watched() -> Any:
        objective = step_objective()
        seen.append((objective.l1_reward, objective.l1_kl))
        return objective

    trainer._step_objective = watched
    trainer.train()
    # a common mask's weights are halved
    assert seen == [(pytest.approx(0.1 * f), pytest.approx(0.05 * f)) for f in (0, 0, 0, 0.5, 1, 1)]
    assert trainer.objective.l1_reward == 0.1  # what is reported and evaluated


def test_the_hard_concrete_penalty_is_in_the_loss_and_reaches_shut_tokens(tmp_path: Path, rows: Dataset) -> None:
    """With every token shut the L1 norm of the mask would have no gradient; the expected L0 norm has."""
    losses, states = [], []
    for weight in (None, 0.5):
        mask = LearnedMask(32, 2, init="ones", gate="hard_concrete")
        mask.heads["shared"].offset.fill_(2.5)
        trainer = build(
            run_config(tmp_path, max_steps=1, kl_anchor=0.0, mask_l1_reward=weight, mask_l1_kl=weight), rows, mask=mask
        )
        before = mask_state(trainer)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        states.append(moved({n: before[n] for n in ("heads.shared.layer_bias",)}, mask_state(trainer)))
    assert losses[1] > losses[0]
    assert states[0] == 0
    assert states[1] > 1e-3


def rates(trainer: SparsePOTrainer) -> tuple[float, float]:
    groups = trainer.optimizer.param_groups
    return groups[0]["lr"], groups[-1]["lr"]


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, [1, 0.75, 0.5, 0.25]),
        ({"mask_lr_scheduler_type": "constant"}, [1, 1, 1, 1]),
        ({"mask_lr_scheduler_type": "constant_with_warmup", "mask_warmup_steps": 2}, [0, 0.5, 1, 1]),
        ({"mask_warmup_steps": 0.5}, [0, 0.5, 1, 0.5]),
        ({"mask_hold_steps": 2}, [0, 0, 0.5, 0.25]),
        ({"mask_hold_steps": 2, "mask_lr_scheduler_type": "linear"}, [0, 0, 1, 0.5]),
    ],
    ids=str,
)
def test_the_head_has_a_schedule_of_its_own(
    tmp_path: Path, rows: Dataset, settings: dict[str, Any], factors: list[float]
) -> None:
    config = run_config(tmp_path, max_steps=4, lr_scheduler_type="linear", mask_learning_rate=0.01, **settings)
    trainer = build(config, rows)
    trainer.create_optimizer_and_scheduler(4)
    found = []
    for _ in factors:
        found.append(rates(trainer))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    policy, mask = zip(*found, strict=True)
    assert list(policy) == pytest.approx([2e-3 * f for f in (1, 0.75, 0.5, 0.25)])
    assert list(mask) == pytest.approx([0.01 * f for f in factors])


def test_lengths_are_steps_or_shares() -> None:
    assert [steps_of(value, 10) for value in (0, 0.25, 0.5, 1, 7)] == [0, 3, 5, 1, 7]
    schedule = MaskSchedule(hold=0.2, sparsity_warmup=0.5, l1_warmup=4)
    assert [schedule.is_held(step, 10) for step in range(4)] == [True, True, False, False]
    assert [schedule.sparsity_progress(step, 10) for step in (0, 2, 3, 7, 9)] == [0, 0, 0.2, 1, 1]
    assert [schedule.l1_factor(step, 10) for step in (1, 2, 4, 6)] == [0, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_hold_steps": 4}, "mask_hold_steps=4 last 4 of 4 steps"),
        (
            {"mask_hold_steps": 0.5, "mask_sparsity_warmup": 0.5, "mask_target_sparsity": 0.5},
            "mask_hold_steps=0.5 and mask_sparsity_warmup=0.5 last 4 of 4 steps",
        ),
        ({"mask_sparsity_warmup": 9, "mask_target_sparsity": 0.5}, "last 9 of 4 steps"),
        ({"mask_hold_steps": 1, "lr_scheduler_type": "reduce_lr_on_plateau"}, "is no function of the step"),
    ],
)
def test_a_course_that_cannot_end_is_refused(
    tmp_path: Path, rows: Dataset, heldout: Dataset, settings: dict[str, Any], message: str
) -> None:
    trainer = build(run_config(tmp_path, max_steps=4, eval_strategy="steps", **settings), rows, eval_dataset=heldout)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_a_scheduler_of_the_users_own_refuses_the_masks(tmp_path: Path, rows: Dataset) -> None:
    mask = LearnedMask(32, 2, init="ones")
    optimizer = torch.optim.SGD(mask.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="a scheduler of your own decides the mask head's rate"):
        build(run_config(tmp_path, mask_hold_steps=2), rows, mask=mask, optimizers=(optimizer, scheduler))
