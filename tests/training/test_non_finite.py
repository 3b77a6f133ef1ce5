"""A step that is not finite is caught before the optimiser moves, named, kept for repeat, and handled as configured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sparsepo import SparsePOTrainer
from sparsepo.training.finite import Finding
from sparsepo.training.non_finite import IN_A_ROW, NonFiniteError, read_batch
from tests.support import tiny_model

from .running import assert_same, build, logged, mask_state, policy_state, prepared_rows, run_config


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 10)


def poison(trainer: SparsePOTrainer, term: str, step: int) -> dict[str, Any]:
    """Make one number of one step not finite; returns what will be hit (filled when it happens)."""
    hit: dict[str, Any] = {}
    original = trainer._step

    def poisoned(model: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        is_due = trainer.state.global_step == step - 1
        row = int(batch["row_id"][-1])
        if is_due and hit.setdefault("row", row) in batch["row_id"].tolist():
            pair = batch["row_id"].tolist().index(hit["row"])
            return _with_poison(trainer, original, model, batch, args, kwargs, term, pair, hit)
        return original(model, batch, *args, **kwargs)

    trainer._step = poisoned
    return hit


def _with_poison(
    trainer: Any, step: Any, model: Any, batch: Any, args: Any, kwargs: Any, term: str, pair: int, hit: dict[str, Any]
) -> Any:
    pairs = len(batch["input_ids"]) // 2
    sequence = pairs + pair  # the rejected side
    column = int(batch["completion_mask"][sequence].nonzero()[1])
    hit.update(token=int(batch["input_ids"][sequence, column]), position=column)
    if term == "reference's log-probability":
        view = trainer._reference_view

        def bad_view(*a: Any, **k: Any) -> Any:
            found = view(*a, **k)
            found.last_hidden = found.last_hidden.clone()
            found.last_hidden[sequence, column - 1] = torch.nan
            return found

        trainer._reference_view = bad_view
        try:
            return step(model, batch, *args, **kwargs)
        finally:
            trainer._reference_view = view
    if term == "reward mask":
        masks = trainer.masker.token_masks

        def bad_masks(inputs: Any) -> Any:
            found = masks(inputs)
            found.reward = found.reward.clone() if hasattr(found, "reward") else found.reward
            found.reward[sequence, column - 1] = torch.inf
            return found

        trainer.masker.token_masks = bad_masks
        try:
            return step(model, batch, *args, **kwargs)
        finally:
            del trainer.masker.token_masks
    assert term == "gradient"
    result = step(model, batch, *args, **kwargs)
    parameter = trainer.model.transformer.wte.weight
    if torch.is_grad_enabled():
        handle = parameter.register_hook(lambda g: (handle.remove(), g * torch.inf)[1])
        hit["parameter"] = "transformer.wte.weight"
    return result


@pytest.mark.parametrize("term", ["reference's log-probability", "reward mask", "gradient"])
def test_it_stops_names_and_keeps(tmp_path: Path, rows: Dataset, term: str) -> None:
    before = build(run_config(tmp_path / "short", max_steps=2), rows)
    before.train()
    trainer = build(run_config(tmp_path / "out", max_steps=5, scorer="dense" if "log" in term else "fused"), rows)
    hit = poison(trainer, term, step=3)
    with pytest.raises(NonFiniteError, match=r"Step 3 is not finite: row \d") as caught:
        trainer.train()
    first = caught.value.findings[0]
    assert first.row == hit["row"]
    assert first.term == term
    if term == "gradient":
        assert hit["parameter"] in {finding.parameter for finding in caught.value.findings}
    else:
        assert (first.side, first.position, first.token_id) == ("rejected", hit["position"], hit["token"])
        assert f"rejected, token {hit['position']} (" in str(caught.value)
    assert trainer.state.global_step == 2
    if term != "reference's log-probability":  # the same scorer as the run before
        assert_same(policy_state(trainer), policy_state(before))
        assert_same(mask_state(trainer), mask_state(before))
    assert "checkpoint-2 holds the weights before it" in str(caught.value)
    folder = tmp_path / "out" / "non_finite" / "step-000003"
    files = list(folder.iterdir())
    assert [file.suffix for file in files] == [".safetensors"]
    batch, stated = read_batch(files[0])
    assert hit["row"] in batch["row_id"].tolist()
    assert stated["step"] == 3
    assert stated["findings"][0]["term"] == term
    assert first in trainer.replay_batch(files[0])
    del trainer._step  # without the poison the batch is fine
    assert trainer.replay_batch(files[0]) == []


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_leaves_nothing_behind(tmp_path: Path, rows: Dataset, accumulation: int) -> None:
    """Weights and optimiser after a skipped step are those of before; the run goes on, and the count is logged."""
    size = 4 // accumulation
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 4}
    trainer = build(run_config(tmp_path, non_finite="skip", **settings), rows)
    poison(trainer, "reward mask", step=3)
    states: list[dict[str, torch.Tensor]] = []
    from transformers import TrainerCallback

    class Notes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments = {
                f"moment{i}": value["exp_avg"].clone()
                for i, value in enumerate(kwargs["optimizer"].state_dict()["state"].values())
            }
            states.append(policy_state(trainer) | mask_state(trainer) | moments)

    trainer.add_callback(Notes())
    trainer.train()
    assert_same(states[2], states[1])
    assert any(not torch.equal(states[3][name], states[2][name]) for name in states[2])
    assert trainer.skipped_steps == 1
    counts = [entry.get("non_finite/skipped_steps") for entry in logged(trainer)]
    assert counts[:4] == [None, None, 1, 1]
    assert all(bool(torch.isfinite(value).all()) for value in policy_state(trainer).values())


@pytest.mark.parametrize("every", [1, 4])
def test_a_skipped_step_stays_out_of_logs_and_monitor(tmp_path: Path, rows: Dataset, every: int) -> None:
    """Averages are those of the steps that were made; what is of the skipped step alone is not logged."""

    def run(folder: str, **settings: Any) -> SparsePOTrainer:
        settings = {"max_steps": 4, "logging_steps": every, "logging_nan_inf_filter": False, **settings}
        return build(run_config(tmp_path / folder, non_finite="skip", skip_masked=False, **settings), rows)

    trainer = run("out")
    poison(trainer, "reward mask", step=3)
    trainer.train()
    entries = [entry for entry in logged(trainer) if "learning_rate" in entry]
    for entry in entries:
        assert all(math.isfinite(value) for value in entry.values() if isinstance(value, float)), entry
    assert trainer.mask_monitor is not None  # a mask that is not finite is what it is there to tell
    assert {event["name"] for event in trainer.mask_monitor.health.history} >= {"non_finite"}
    if every == 1:
        skipped = entries[2]
        assert {"loss", "grad_norm", "mask/grad_norm", "rewards/margins", "mask/reward/mean"}.isdisjoint(skipped)
        return
    single = run("single", logging_steps=1)
    poison(single, "reward mask", step=3)
    single.train()
    made = [entry for entry in logged(single) if "rewards/margins" in entry]
    assert [entry["step"] for entry in made] == [1, 2, 4]
    for name in ("loss", "rewards/margins"):  # of steps with 4, 4, and 4 pairs
        assert entries[0][name] == pytest.approx(sum(entry[name] for entry in made) / 3, rel=1e-5, abs=1e-7)


class Overflows:
    """A hook that makes a gradient overflow at some steps."""

    def __init__(self, trainer: SparsePOTrainer, steps: range) -> None:
        self.trainer, self.steps = trainer, steps
        trainer.model.transformer.wte.weight.register_hook(self)

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf if self.trainer.state.global_step + 1 in self.steps else gradient


@pytest.mark.parametrize("non_finite", ["stop", "skip"])
def test_a_scale_that_is_never_found_ends_the_run(tmp_path: Path, rows: Dataset, non_finite: str) -> None:
    trainer = build(run_config(tmp_path, non_finite=non_finite, max_steps=IN_A_ROW + 5, logging_steps=100), rows)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # as fp16 has one on a GPU
    Overflows(trainer, range(2, 1000))
    with pytest.raises(
        NonFiniteError, match=f"GradScaler has left out the {IN_A_ROW} steps before it.*wte.weight is"
    ) as e:
        trainer.train()
    assert f"Step {IN_A_ROW + 2}: " in str(e.value)
    assert f"a scale of {2.0 ** (10 - IN_A_ROW):g}" in str(e.value)
    assert f"checkpoint-{IN_A_ROW + 1} holds the weights before it" in str(e.value)
    assert "Train with bf16" in str(e.value)


def test_a_search_for_the_scale_is_no_failure(tmp_path: Path, rows: Dataset) -> None:
    trainer = build(run_config(tmp_path, max_steps=IN_A_ROW + 5, logging_steps=100), rows)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    Overflows(trainer, range(2, IN_A_ROW + 1))  # one short of what ends it
    trainer.train()
    assert trainer.state.global_step == IN_A_ROW + 5
    assert trainer.skipped_steps == 0


def test_weights_that_are_lost_end_the_run(tmp_path: Path, rows: Dataset) -> None:
    """Skipping cannot mend weights that are nan: after some steps in a row the run ends."""
    model = tiny_model("gpt2")
    trainer = build(run_config(tmp_path, non_finite="skip", max_steps=IN_A_ROW + 5), rows, model=model)
    with torch.no_grad():
        trainer.model.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"policy's log-probability is nan.*{IN_A_ROW} steps in a row"):
        trainer.train()
    assert trainer.state.global_step == IN_A_ROW - 1
    assert len(list((tmp_path / "non_finite").iterdir())) == 20


def test_looking_changes_nothing(tmp_path: Path, rows: Dataset) -> None:
    states = []
    for choice in ("stop", "skip"):
        trainer = build(run_config(tmp_path / choice, non_finite=choice), rows)
        trainer.train()
        states.append(policy_state(trainer) | mask_state(trainer))
        assert not (tmp_path / choice / "non_finite").exists()
    assert_same(states[0], states[1])


@given(content=st.binary(max_size=200))
def test_a_file_that_holds_no_batch_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "batch.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no batch"):
        read_batch(path)


def test_what_a_finding_says() -> None:
    token = Finding("KL", "nan", 17, 2, "chosen", 12, 5, " good")
    assert str(token) == "row 17, chosen, token 12 (' good', id 5): the KL is nan"
    assert str(Finding("gradient", "inf", None, 2, parameter="lm_head")) == (
        "pair 2 of the batch: the gradient of lm_head is inf"
    )
    assert str(Finding("loss of the batch", "inf")) == "the loss of the batch is inf"
