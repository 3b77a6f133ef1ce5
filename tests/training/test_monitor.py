"""Every failure that the health monitor names, provoked in a real run; what it costs a healthy run: no alarm."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sparsepo import LearnedMask, SparsePOConfig, SparsePOTrainer
from sparsepo.masks import Masker, MaskInputs
from sparsepo.masks.advice import Advice
from sparsepo.masks.health_types import COMPUTED_SIGNATURES, SIGNATURES
from sparsepo.training.monitor import HEALTH_FILE, MaskMonitor
from sparsepo.training.settings import resolve_settings

from .parallel_cases import run_case
from .running import PLAIN_HEAD, build, logged, prepared_rows, run_config, steps_of
from .test_distributed import launch, read


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("monitored"), 16)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("held-out"), 12, seed=1)


class GivenMask(Masker):
    """A masker of the tests: masks by a function of what a masker is given."""

    kind = "given"
    sharing = "common"

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def raw_masks(self, inputs: MaskInputs) -> tuple[torch.Tensor, torch.Tensor]:
        masks = self.function(inputs).float()
        return masks, masks


def run(folder: Path, rows: Dataset, **settings: Any) -> SparsePOTrainer:
    """A run in which the policy learns but the mask hardly moves, unless it is told otherwise."""
    arguments = {name: settings.pop(name) for name in ("mask", "eval_dataset", "model") if name in settings}
    if isinstance(arguments.get("mask"), str) or not isinstance(arguments.get("mask"), Masker | None):
        settings["mask"] = arguments.pop("mask")
    if arguments.get("mask") is None:
        settings = {"mask_learning_rate": 1e-3, **settings}
    learned = settings.get("mask") in (None, "learned") and settings.get("objective", "sparsepo") == "sparsepo"
    if not learned:
        settings.pop("mask_learning_rate", None)
    trainer = build(run_config(folder, **{"max_steps": 12, "learning_rate": 1e-3, **settings}), rows, **arguments)
    trainer.train()
    return trainer


def found(trainer: SparsePOTrainer) -> dict[str, str]:
    """What is being seen at the end of a run: name → message."""
    return {finding.name: finding.message for finding in trainer.mask_health.findings}


def ever(trainer: SparsePOTrainer) -> set[str]:
    """What was seen at any time."""
    return {event["name"] for event in trainer.mask_health.history}


def dead_start() -> LearnedMask:
    """Masks of zero for every token: what some random starts give."""
    mask = LearnedMask(32, 2, init="ones")
    with torch.no_grad():
        mask.mask_heads()[0].mixer_weight.neg_()
    return mask


# ---- failures ----


def test_masks_driven_to_zero_have_collapsed(tmp_path, rows, caplog):
    with caplog.at_level(logging.WARNING, "sparsepo"):
        trainer = run(tmp_path, rows, mask_l1_reward=5.0, mask_l1_kl=5.0, mask_learning_rate=0.05, max_steps=20)
    message = found(trainer)["collapse"]
    assert "the common mask has collapsed: 100 % of its values are zero" in message
    assert "lower mask_l1_reward (5 → 1.7)" in message
    said = [record.getMessage() for record in caplog.records if message in record.getMessage()]
    assert len(said) == 1
    flags = [entry["mask/health/collapse"] for entry in steps_of(trainer.state.log_history)]
    first = next(e["step"] for e in trainer.mask_health.history if e["name"] == "collapse")
    assert flags == [float(step >= first) for step in range(1, 21)]


def test_only_the_mask_that_collapses_is_named(tmp_path, rows):
    trainer = run(
        tmp_path, rows, mask_sharing="independent", mask_l1_kl=5.0, mask_learning_rate=0.05, kl_anchor=0, max_steps=20
    )
    collapsed = [finding for finding in trainer.mask_health.findings if finding.name == "collapse"]
    assert [(f.mask, f.message[:12]) for f in collapsed] == [("kl", "the KL mask ")]
    assert "mask_l1_kl" in collapsed[0].message


def test_a_dead_start_has_no_gradient_once_the_policy_has_moved(tmp_path, rows):
    trainer = run(tmp_path, rows, mask=dead_start(), sft_weight=1.0)
    message = found(trainer)["no_gradient"]
    assert "exactly zero although the policy has left the reference" in message
    assert "100 % of the masks are zero" in message
    assert trainer.mask_health.history[-1]["since"] >= 2  # at the first step policy and reference agree


def test_zero_gradient_is_no_failure_while_the_policy_is_the_reference_or_the_mask_is_held(tmp_path, rows):
    unmoved = run(tmp_path / "unmoved", rows, mask=dead_start(), max_steps=6)  # dead masks hold the policy too
    held = run(tmp_path / "held", rows, mask=dead_start(), sft_weight=1.0, mask_learning_rate=0.0, max_steps=6)
    for trainer in (unmoved, held):
        assert "no_gradient" not in ever(trainer)
        assert "collapse" in ever(trainer)


def test_sparsity_that_was_asked_for_and_does_not_come(tmp_path, rows):
    trainer = run(tmp_path, rows, mask_l1_reward=1e-6)
    assert set(found(trainer)) == {"no_sparsity"}
    assert "only 0 % of the common mask is zero although an L1 weight of 1e-06" in found(trainer)["no_sparsity"]
    assert trainer.mask_health.findings[0].since == 6  # half of the training


def test_a_growing_mask_is_a_growing_beta(tmp_path, rows):
    trainer = run(tmp_path, rows, mask_learning_rate=0.1, beta=0.2, **PLAIN_HEAD)
    message = found(trainer)["drift"]
    last = list(steps_of(trainer.state.log_history))[-1]["mask/effective_beta"]
    assert last > 0.6
    assert "the effective β (β × mean mask) went from 0.2" in message
    assert "lower mask_learning_rate (0.1 → 0.033)".lower() in message.lower()


_ONLY = {
    "position in the response": lambda inputs: inputs.response_mask.cumsum(-1),
    "distance from the end": lambda inputs: 1 + inputs.response_mask.flip(-1).cumsum(-1).flip(-1),
    "position in the whole sequence": lambda inputs: 1 + inputs.noise.position,
    "length of the response": lambda inputs: inputs.response_mask.sum(-1, keepdim=True).expand_as(inputs.response_mask),
    "lies between responses": lambda inputs: (1 + inputs.noise.row % 97)[:, None].expand_as(inputs.response_mask),
}


@pytest.mark.parametrize("what", _ONLY)
def test_masks_that_say_nothing_about_the_words(tmp_path, rows, what):
    trainer = run(tmp_path, rows, mask=GivenMask(_ONLY[what]), logging_steps=23, max_steps=46, beta=0.01)
    assert set(found(trainer)) == {"position"}
    assert what in found(trainer)["position"]


def test_masks_that_change_between_evaluations(tmp_path, rows, held_out):
    def unsteady(inputs: MaskInputs) -> torch.Tensor:
        values = inputs.noise.uniform(7)  # another draw at every step
        return values * (values > 0.5)

    settings = {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": held_out}
    trainer = run(tmp_path / "unsteady", rows, mask=GivenMask(unsteady), **settings)
    assert set(found(trainer)) == {"flicker"}
    assert "changed between the evaluations at steps 6 and 9 (rank correlation" in found(trainer)["flicker"]
    values = [e for e in trainer.state.log_history if "eval_loss" in e]
    assert "eval_mask/reward/rank_correlation" not in values[0]
    assert all(abs(e["eval_mask/reward/kept_overlap"]) < 0.3 for e in values[1:])

    steady = run(tmp_path / "steady", rows, mask=GivenMask(lambda i: i.noise.at_step(0).uniform(7)), **settings)
    assert ever(steady) == set()
    values = [e for e in steady.state.log_history if "eval_loss" in e]
    assert [e["eval_mask/reward/rank_correlation"] for e in values[1:]] == [pytest.approx(1.0)] * 3


@pytest.mark.parametrize(
    ("mask", "kind"), [(GivenMask(lambda i: i.response_mask * 0.7), "given"), ("data", "data"), ("random", "random")]
)
def test_masks_without_differences_only_scale_beta(tmp_path, rows, mask, kind):
    trainer = run(tmp_path, rows, mask=mask)
    assert trainer.masker.kind == kind
    assert set(found(trainer)) == ({"saturated"} if kind == "given" else set())
    assert kind != "given" or "is the same for every token (0.7 ±" in found(trainer)["saturated"]


def test_a_learned_mask_that_cannot_tell_tokens_apart_is_saturated(tmp_path, rows):
    mask = LearnedMask(32, 2, init="ones")
    with torch.no_grad():
        mask.mask_heads()[0].norm.weight.zero_()
    trainer = run(tmp_path, rows, mask=mask, mask_learning_rate=1e-9)
    assert set(found(trainer)) == {"saturated"}
    assert "Raise mask_learning_rate (1e-09 → 3e-09)" in found(trainer)["saturated"]


def test_masks_that_are_not_finite(tmp_path, rows):
    mask = GivenMask(lambda i: torch.where(i.noise.position % 5 == 4, torch.inf, 1.0))
    trainer = run(tmp_path, rows, mask=mask, non_finite="skip")  # "stop" would end before the monitor speaks
    assert "of the values of the common mask are not finite (since step 1)" in found(trainer)["non_finite"]


def test_masks_of_zeros_from_the_data(tmp_path):
    dead = prepared_rows(tmp_path / "rows", 8).map(
        lambda row: {name: [0.0] * len(row[name]) for name in ("chosen_token_weights", "rejected_token_weights")}
    )
    trainer = run(tmp_path, dead, mask="data", max_steps=3)
    assert set(found(trainer)) == {"collapse"}
    assert "Give chosen_weights and rejected_weights" in found(trainer)["collapse"]


# ---- several processes ----


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch(folder, ["sums", "tampered", "broken"])
    return folder


def test_processes_whose_heads_differ_stop_alike(two_processes):
    first, second = (read(two_processes, "tampered", 2, rank)["health"] for rank in (0, 1))
    assert first == second
    assert [finding["name"] for finding in first["active"]] == ["disagreement"]
    assert "those of 1 are not that of process 0" in first["stopped"]["reason"]
    assert first["stopped"]["step"] == 2
    assert read(two_processes, "tampered", 2)["log"][-1]["step"] == 2


def test_masks_that_one_process_alone_sees_are_told_by_all(two_processes):
    """Its steps are left out by both, and logged at once: what is kept for the monitor must be kept by both."""
    first, second = (read(two_processes, "broken", 2, rank)["health"] for rank in (0, 1))
    assert first == second
    assert "non_finite" in {event["name"] for event in first["history"]}


def test_two_processes_measure_what_one_does(two_processes):
    run_case("sums", two_processes, processes=1)
    one, two = (read(two_processes, "sums", count)["health"] for count in (1, 2))
    assert one["windows"].keys() == two["windows"].keys() == {"reward", "kl"}
    assert one["windows"]["reward"][0] > 200  # tokens
    for name, window in one["windows"].items():
        torch.testing.assert_close(torch.tensor(two["windows"][name]), torch.tensor(window), rtol=1e-3, atol=1e-4)
        assert two["start"][name] == pytest.approx(one["start"][name])


# ---- a healthy run ----


@pytest.mark.parametrize("settings", [{}, {"mask_sharing": "independent"}, {"objective": "mapo"}])
def test_a_healthy_run_raises_nothing(tmp_path, rows, held_out, settings):
    trainer = run(tmp_path, rows, eval_dataset=held_out, eval_strategy="steps", eval_steps=10, max_steps=44, **settings)
    assert trainer.mask_health.history == []
    expected = COMPUTED_SIGNATURES if settings.get("objective") else SIGNATURES
    last = list(steps_of(trainer.state.log_history))[-1]
    assert {name for name in last if name.startswith("mask/health/")} == {f"mask/health/{name}" for name in expected}
    assert all(last[f"mask/health/{name}"] == 0 for name in expected)
    content = json.loads((tmp_path / HEALTH_FILE).read_text())
    assert (content["active"], content["history"], content["stopped"]) == ([], [], None)


def test_the_gap_is_training_minus_held_out(tmp_path, rows, held_out):
    trainer = run(
        tmp_path, rows, eval_dataset=held_out, eval_strategy="steps", eval_steps=6, mask_sharing="independent"
    )
    training = list(steps_of(trainer.state.log_history))[-1]
    evaluation = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    gaps = {name: value for name, value in evaluation.items() if "/gap/" in name}
    names = {
        "eval_mask/gap/margins": "rewards/margins",
        "eval_mask/gap/accuracies": "rewards/accuracies",
        **{f"eval_mask/gap/{m}/{w}": f"mask/{m}/{w}" for m in ("reward", "kl") for w in ("mean", "sparsity")},
    }
    assert gaps.keys() == names.keys()
    for gap, name in names.items():
        assert gaps[gap] == pytest.approx(training[name] - evaluation[f"eval_{name}"])
    assert gaps["eval_mask/gap/margins"] > 0


def test_micro_batches_measure_what_one_batch_does(tmp_path, rows):
    whole = run(tmp_path / "whole", rows, max_steps=4)
    parts = run(tmp_path / "parts", rows, max_steps=4, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    one, other = (trainer.mask_health.state() for trainer in (whole, parts))
    torch.testing.assert_close(
        torch.tensor(other["windows"]["reward"]), torch.tensor(one["windows"]["reward"]), rtol=1e-3, atol=1e-4
    )
    assert other["start"]["reward"] == pytest.approx(one["start"]["reward"])


def test_the_monitor_changes_nothing_but_the_log(tmp_path, rows):
    watched = run(tmp_path / "watched", rows, max_steps=4)
    alone = build(run_config(tmp_path / "alone", max_steps=4, learning_rate=1e-3, mask_learning_rate=1e-3), rows)
    alone.remove_callback(MaskMonitor)
    alone.train()
    assert alone.mask_health is None
    assert not (tmp_path / "alone" / HEALTH_FILE).exists()
    for with_it, without in zip(logged(watched), logged(alone), strict=True):
        assert {name: value for name, value in with_it.items() if not name.startswith("mask/health/")} == without


# ---- stopping and resuming ----


def test_stop_saves_and_ends_the_run(tmp_path, rows):
    settings = {"mask_l1_reward": 1e-6, "mask_on_failure": "stop", "save_strategy": "no"}
    trainer = run(tmp_path, rows, **settings)
    step = trainer.mask_monitor.stopped["step"]
    assert step == trainer.state.global_step == 7  # seen at steps 6 and 7
    assert "an L1 weight of 1e-06 asks for zeros" in trainer.mask_monitor.stopped["reason"]
    assert (tmp_path / f"checkpoint-{step}" / "mask" / "mask.json").is_file()
    assert json.loads((tmp_path / HEALTH_FILE).read_text())["stopped"] == trainer.mask_monitor.stopped

    again = build(run_config(tmp_path, max_steps=12, learning_rate=1e-3, mask_learning_rate=1e-3, **settings), rows)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert again.state.global_step == 12  # what was known when it stopped does not stop it again
    assert found(again).keys() == {"no_sparsity"}


def test_a_failure_between_evaluations_stops_as_well(tmp_path, rows, held_out):
    trainer = run(
        tmp_path,
        rows,
        mask=GivenMask(lambda inputs: inputs.noise.uniform(7)),
        eval_dataset=held_out,
        eval_strategy="steps",
        eval_steps=2,
        mask_on_failure="stop",
    )
    assert trainer.state.global_step == 6
    assert (tmp_path / "checkpoint-6").is_dir()


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path, rows, held_out):
    settings = {
        "mask_learning_rate": 0.03,
        "mask_l1_reward": 0.5,
        "learning_rate": 1e-3,
        "max_steps": 16,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 9,
    }
    whole = build(run_config(tmp_path, **settings), rows, eval_dataset=held_out)
    whole.train()
    assert whole.mask_health.history
    resumed = build(run_config(tmp_path / "resumed", **settings), rows, eval_dataset=held_out)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert resumed.mask_health.history == whole.mask_health.history
    assert resumed.mask_health.state() == whole.mask_health.state()
    after = [[entry for entry in logged(trainer, after=9) if "train_loss" not in entry] for trainer in (resumed, whole)]
    assert after[0] == after[1]


# ---- settings ----

_FIELDS = {field.name for field in fields(SparsePOConfig)}
_GATES = ("relu", "clamped", "sigmoid", "topk") if "mask_gate" in _FIELDS else (None,)


@pytest.mark.parametrize("kind", ["learned", "activation", "random", "data", "given"])
@pytest.mark.parametrize("gate", _GATES)
def test_advice_names_settings_that_exist(kind, gate):
    target = {"reward": 0.5, "kl": None} if gate else {}
    advice = Advice(kind, 1e-3, "published", {"reward": 0.0, "kl": 0.1}, target, gate)
    for name in SIGNATURES:
        for mask in ("reward", "kl"):
            sentence = advice.on(name, mask)
            assert sentence.endswith(".")
            assert set(re.findall(r"\b(?:mask|ddp)_\w+", sentence)) <= _FIELDS


def test_the_setting_is_refused_where_nothing_reads_it():
    for settings in ({"objective": "dpo"}, {"mask": "dense"}):
        with pytest.raises(ValueError, match="mask_on_failure='stop' has no effect"):
            resolve_settings(SparsePOConfig("unused", report_to="none", mask_on_failure="stop", **settings))
    with pytest.raises(ValueError, match="mask_on_failure='halt'"):
        SparsePOConfig("unused", report_to="none", mask_on_failure="halt")


def test_constant_masks_are_not_watched(tmp_path, rows):
    trainer = run(tmp_path, rows, mask="dense", max_steps=2)
    assert trainer.mask_monitor is None
    assert not any(name.startswith("mask/health") for entry in logged(trainer) for name in entry)
