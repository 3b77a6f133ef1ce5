"""Resuming is bit for bit, what is saved is what is loaded, and mask and policy always stay together."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparsepo import LearnedMask, SparsePOTrainer, load_mask
from sparsepo.masks import Masker
from sparsepo.masks.saving import read_mask_info
from sparsepo.training.sealing import CheckpointError
from tests.support import preference_rows, tiny_model

from .running import PLAIN_HEAD, assert_same, build, logged, mask_state, moved, policy_state, prepared_rows, run_config

TUNING = {"full": {"lora": False, "learning_rate": 2e-3}, "lora": {"lora": True, "learning_rate": 2e-2}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 10)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("heldout"), 5, seed=1)


def saving(folder: Path, rows: Dataset, tuning: str = "full", **settings: Any) -> SparsePOTrainer:
    """A trainer that saves every second step."""
    how = TUNING[tuning]
    config = {
        "learning_rate": how["learning_rate"],
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        **settings,
    }
    handed = [name for name in ("eval_dataset", "model", "optimizers") if name in config]
    handed += ["mask"] if isinstance(config.get("mask"), Masker) else []
    arguments = {name: config.pop(name) for name in handed}
    return build(run_config(folder, **config), rows, lora=how["lora"], **arguments)


def rng_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}


def whole_state(trainer: SparsePOTrainer) -> dict[str, Any]:
    """All that training goes on from."""
    return {
        "policy": policy_state(trainer),
        "mask": mask_state(trainer),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "rng": rng_states(),
    }


# ---- resuming ----


@pytest.mark.parametrize("sharing", ["common", "independent"])
@pytest.mark.parametrize("tuning", TUNING)
def test_resuming_is_bit_for_bit(tmp_path: Path, rows: Dataset, tuning: str, sharing: str) -> None:
    settings = {
        "mask_sharing": sharing,
        "mask_dropout": 0.3,
        "disable_dropout": False,  # GPT-2's own 0.1
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,  # 10 rows: 3 steps an epoch, the last of 2 rows
        "max_steps": 8,
        "save_steps": 4,  # inside the second epoch
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
    }
    whole = saving(tmp_path / "whole", rows, tuning, **settings)
    start = policy_state(whole) | mask_state(whole)
    whole.train()
    expected = whole_state(whole)
    assert moved(start, expected["policy"] | expected["mask"]) > 1e-3

    random.seed(99)  # a new process would start elsewhere
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = saving(tmp_path / "resumed", rows, tuning, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    found = whole_state(resumed)
    assert_same(found, expected)
    # policy and mask head, each with and without weight decay
    assert len(found["optimizer"]["param_groups"]) == 4
    # the last entry is Trainer's summary of the session, whose mean loss covers the session's steps
    assert_same(logged(resumed, after=4)[:-1], logged(whole, after=4)[:-1])
    assert len(logged(resumed, after=4)) == 5
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0


def test_the_resumed_run_depends_on_both_dropouts(tmp_path: Path, rows: Dataset) -> None:
    """Guards the test above: each dropout changes the run, so that resuming without it would be noticed."""
    states = []
    for settings in ({}, {"mask_dropout": 0.3}, {"disable_dropout": False}):
        trainer = saving(tmp_path, rows, save_strategy="no", **settings)
        trainer.train()
        states.append(policy_state(trainer))
    assert moved(states[0], states[1]) > 1e-5
    assert moved(states[0], states[2]) > 1e-5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"mask_sharing": "independent"}, "sharing is 'common' there and 'independent' here"),
        ({"mask_position": "token"}, "position is 'predicting' there and 'token' here"),
        ({"mask": "random"}, "kind is 'learned' there and 'random' here"),
        ({"mask": "dense"}, "kind is 'learned' there and 'dense' here"),
        ({"objective": "dpo"}, "there is a 'learned' mask there and none here"),
        ({"objective": "mapo"}, "kind is 'learned' there and 'activation' here"),
    ],
)
def test_resuming_with_another_mask_is_refused(
    tmp_path: Path, rows: Dataset, other: dict[str, Any], message: str
) -> None:
    checkpoint = checkpoint_of(tmp_path / "first", rows)
    trainer = saving(tmp_path / "second", rows, **other)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_resuming_a_random_mask_with_another_seed_is_refused(tmp_path: Path, rows: Dataset) -> None:
    checkpoint = checkpoint_of(tmp_path / "first", rows, mask="random")
    trainer = saving(tmp_path / "second", rows, mask="random", seed=7)
    with pytest.raises(ValueError, match="seed is 42 there and 7 here"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_resuming_without_the_mask_folder_is_refused(tmp_path: Path, rows: Dataset) -> None:
    checkpoint = checkpoint_of(tmp_path / "first", rows)
    shutil.rmtree(Path(checkpoint) / "mask")
    with pytest.raises(CheckpointError, match=r"mask/mask.json is missing"):
        saving(tmp_path / "second", rows).train(resume_from_checkpoint=checkpoint)


def test_how_a_head_started_and_drops_out_may_differ_on_resuming(tmp_path: Path, rows: Dataset) -> None:
    checkpoint = checkpoint_of(tmp_path / "first", rows)
    trainer = saving(tmp_path / "second", rows, mask_init="published", mask_dropout=0.1, seed=7)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 4
    assert float(mask_state(trainer)["heads.shared.layer_bias"].min()) > 0.5  # ones, not published


def checkpoint_of(folder: Path, rows: Dataset, **settings: Any) -> str:
    saving(folder, rows, **{"max_steps": 2, **settings}).train()
    return str(folder / "checkpoint-2")


# ---- saved is loaded ----


@pytest.mark.parametrize("tuning", TUNING)
def test_checkpoints_hold_policy_and_mask_of_their_step(tmp_path: Path, rows: Dataset, tuning: str) -> None:
    trainer = saving(tmp_path, rows, tuning, mask_sharing="independent")
    trainer.train()
    early, late = (load_mask(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    assert early.settings() == late.settings() == trainer.masker.settings()
    assert_same(dict(late.state_dict()), mask_state(trainer))
    assert moved(dict(early.state_dict()), dict(late.state_dict())) > 1e-4
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        assert not (folder / "training_args.bin").exists()
        assert not [name for name in policy_tensors(folder) if "mask" in name]
        assert (folder / "optimizer.pt").is_file()
        assert_settings(folder, trainer)
    assert_same(policy_tensors(tmp_path / "checkpoint-4"), as_saved(trainer))


def policy_tensors(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return dict(sorted(load_file(folder / name).items()))


def as_saved(trainer: SparsePOTrainer) -> dict[str, torch.Tensor]:
    """The policy's trainable weights under the names that a saved file gives them."""
    return dict(sorted((name.replace(".default", ""), value) for name, value in policy_state(trainer).items()))


def assert_settings(folder: Path, trainer: SparsePOTrainer) -> None:
    content = json.loads((folder / "sparsepo.json").read_text())
    assert content["format"] == 1
    assert content["objective"] == {"name": "sparsepo", **trainer.objective.settings()}
    assert content["objective"]["beta"] == 0.1
    assert content["mask"] == {"kind": "learned", **trainer.masker.settings()}
    assert set(content["versions"]) == {"sparsepo", "trl", "transformers", "torch", "datasets", "peft", "accelerate"}
    assert content["versions"]["trl"] == "1.16.0"
    assert "base_model" in content


def test_the_base_model_is_recorded(tmp_path: Path, rows: Dataset) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    trainer = saving(tmp_path / "out", rows, model=str(tmp_path / "base"), save_strategy="no", max_steps=1)
    trainer.train()
    trainer.save_model()
    assert read_mask_info(tmp_path / "out")["base_model"] == str(tmp_path / "base")
    assert f'"base_model": "{tmp_path / "base"}"' in (tmp_path / "out" / "sparsepo.json").read_text()


def test_merged_lora_has_no_mask_keys_and_the_mask_still_loads(tmp_path: Path, rows: Dataset) -> None:
    trainer = saving(tmp_path / "adapter", rows, "lora", save_strategy="no")
    trainer.train()
    trainer.save_model()
    trained = mask_state(trainer)
    batch = trainer.data_collator(list(rows.select(range(3))))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(**inputs).logits
        base = tiny_model("gpt2").eval()(**inputs).logits
    assert float((expected - base).abs().max()) > 1e-2
    out = tmp_path / "merged"
    trainer.model.merge_and_unload().save_pretrained(out)
    trainer.masker.save(out)
    assert not [name for name in load_file(out / "model.safetensors") if "mask" in name or "lora" in name]
    again, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    for folder in ("adapter", "merged"):
        assert_same(dict(load_mask(tmp_path / folder, again).state_dict()), trained)


# ---- the mask that belongs to the policy ----


@pytest.mark.parametrize("tuning", TUNING)
def test_the_best_policy_gets_its_own_mask_back(tmp_path: Path, rows: Dataset, heldout: Dataset, tuning: str) -> None:
    trainer = saving(
        tmp_path,
        rows,
        tuning,
        max_steps=6,
        eval_dataset=heldout,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_mask/reward/max",
        # the plain head's masks spread as it learns, so that the first checkpoint is the "best"
        **PLAIN_HEAD,
        greater_is_better=False,
    )
    trainer.train()
    best, last = tmp_path / "checkpoint-2", tmp_path / "checkpoint-6"
    assert trainer.state.best_model_checkpoint == str(best)
    expected, other = dict(load_mask(best).state_dict()), dict(load_mask(last).state_dict())
    assert moved(expected, other) > 1e-3
    assert_same(mask_state(trainer), expected)
    assert_same(as_saved(trainer), policy_tensors(best))
    assert all(parameter.requires_grad for parameter in trainer.masker.parameters())
    trainer.save_model(str(tmp_path / "final"))
    assert_same(dict(load_mask(tmp_path / "final").state_dict()), expected)
    assert_same(policy_tensors(tmp_path / "final"), policy_tensors(best))


class FakeHub:
    """Stands in for the hub's API: keeps what each upload would have sent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uploads, self.done = folder, [], True

    def create_repo(self, name: str, **_: Any) -> Any:
        return type("Url", (), {"repo_id": name})

    def upload_folder(
        self, folder_path: str, commit_message: str, ignore_patterns: Any = None, path_in_repo: str = "", **_: Any
    ) -> FakeHub:
        target = self.folder / str(len(self.uploads))
        shutil.copytree(folder_path, target, ignore=shutil.ignore_patterns(*(ignore_patterns or [])))
        self.uploads.append((commit_message, path_in_repo, target))
        return self

    def is_done(self) -> bool:
        return self.done

    def wait_until_done(self) -> None:
        self.done = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import transformers.trainer as module

    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(module, "hf_api", lambda: hub)
    monkeypatch.setattr(module, "PushInProgress", lambda jobs: hub)
    return hub


@pytest.mark.parametrize("tuning", TUNING)
def test_every_push_pairs_policy_and_mask(tmp_path: Path, rows: Dataset, tuning: str, hub: FakeHub) -> None:
    out = tmp_path / "out"
    trainer = saving(out, rows, tuning, push_to_hub=True, hub_model_id="me/model", hub_strategy="checkpoint")
    trainer.train()
    trainer.push_to_hub()
    wanted = ["checkpoint-2", "checkpoint-2", "checkpoint-4", "checkpoint-4", "checkpoint-4"]
    assert len(hub.uploads) == len(wanted)
    for (message, path, folder), step in zip(hub.uploads, wanted, strict=True):
        assert_same(dict(load_mask(folder).state_dict()), dict(load_mask(out / step).state_dict()))
        assert_same(policy_tensors(folder), policy_tensors(out / step))
        assert (folder / "sparsepo.json").is_file()
        assert not list(folder.rglob("*training_args.bin")), message
        if not path:  # only the checkpoints that go on from here hold pickles
            assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth")]
    assert not list(out.glob("*training_args.bin"))
    assert "mask" in {file.name for file in hub.uploads[-1][2].iterdir()}


@pytest.mark.parametrize("hub_strategy", ["every_save", "end"])
def test_without_a_push_the_output_folder_keeps_its_pair(
    tmp_path: Path, rows: Dataset, hub: FakeHub, hub_strategy: str
) -> None:
    """A save that is not pushed (the last push still runs, or pushes come at the end) copies neither."""
    out = tmp_path / "out"
    trainer = saving(out, rows, push_to_hub=True, hub_model_id="me/model", hub_strategy=hub_strategy, max_steps=6)
    hub.done = False
    trainer.push_in_progress = hub if hub_strategy == "end" else None
    trainer.train()
    if hub_strategy == "end":
        assert hub.uploads == []
        assert not (out / "mask").exists()
        assert not (out / "model.safetensors").exists()
    else:
        assert len(hub.uploads) == 1  # the first never ended
        assert_same(policy_tensors(out), policy_tensors(out / "checkpoint-2"))
        assert_same(dict(load_mask(out).state_dict()), dict(load_mask(out / "checkpoint-2").state_dict()))


# ---- model card ----


def test_the_model_card_names_method_mask_and_paper(tmp_path: Path, rows: Dataset) -> None:
    out = tmp_path / "a-run"
    trainer = saving(out, rows, mask_sharing="independent", beta=0.35)
    trainer.train()  # writes the card at each of two checkpoints
    text = (out / "README.md").read_text()
    for line in (
        "| objective | sparsepo |",
        "| beta | 0.35 |",
        "| mask | learned |",
        "| mask sharing | independent |",
        "| mask position | predicting |",
        "| mask init | ones |",
    ):
        assert text.count(line) == 1, line
    assert "SparsePO" in text.split("## Preference optimisation")[0]
    assert "arxiv.org/abs/2410.05102" in text or "huggingface.co/papers/2410.05102" in text
    assert "SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks" in text
    assert "eprint        = {2410.05102}" in text
    assert text.index("## Preference optimisation") < text.index("## Citations")
    header = text.split("---")[1]
    for tag in ("sparsepo", "mask-learned", "trl"):
        assert f"- {tag}" in header
    assert "training_args" not in text


def test_the_card_of_a_baseline_cites_its_paper_and_has_no_mask(tmp_path: Path, rows: Dataset) -> None:
    trainer = saving(tmp_path, rows, objective="tdpo2", save_strategy="no", max_steps=1)
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "| objective | tdpo2 |" in text
    assert "Token-level Direct Preference Optimization" in text
    assert "2410.05102" not in text
    assert "load_mask" not in text


# ---- masks and optimisers of one's own ----


def test_an_imported_published_mask_is_trained(tmp_path: Path, rows: Dataset) -> None:
    from sparsepo.masks import import_published_mask

    generator = torch.Generator().manual_seed(3)
    official = {"policy.weight": torch.zeros(2)}
    for head in ("rw_mask", "kl_mask"):
        official[f"model.{head}.layer_norm.weight"] = torch.ones(32)
        official[f"model.{head}.layer_norm.bias"] = torch.zeros(32)
        official[f"model.{head}.mixer.weight"] = torch.full((1, 2), 0.5)
        for layer in range(2):
            official[f"model.{head}.w_per_layer.{layer}.w.weight"] = 0.02 * torch.randn(1, 32, generator=generator)
            official[f"model.{head}.w_per_layer.{layer}.w.bias"] = torch.ones(1)
    mask = import_published_mask(official)
    before = {name: value.detach().clone() for name, value in mask.named_parameters()}
    trainer = saving(tmp_path, rows, mask=mask)
    assert trainer.masker is mask
    trainer.train()
    after = mask_state(trainer)
    assert all(float((after[name] - before[name]).abs().max()) > 1e-5 for name in before)
    assert load_mask(tmp_path / "checkpoint-4").settings()["init"] == "published"
    assert_same(dict(load_mask(tmp_path / "checkpoint-4").state_dict()), after)


def test_a_mask_of_another_size_is_refused(tmp_path: Path, rows: Dataset) -> None:
    with pytest.raises(ValueError, match="The learned mask has hidden_size=16, but GPT2LMHeadModel has 32"):
        saving(tmp_path, rows, mask=LearnedMask(16, 2))


def test_an_optimizer_without_the_mask_is_refused(tmp_path: Path, rows: Dataset) -> None:
    model = tiny_model("gpt2")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="does not hold the mask head's parameters, which would never train"):
        saving(tmp_path, rows, model=model, optimizers=(optimizer, None))


def test_an_optimizer_with_the_mask_trains_both(tmp_path: Path, rows: Dataset) -> None:
    model, mask = tiny_model("gpt2"), LearnedMask(32, 2, init="ones")
    optimizer = torch.optim.SGD([{"params": model.parameters()}, {"params": mask.parameters(), "lr": 1.0}], lr=0.1)
    trainer = saving(tmp_path, rows, model=model, mask=mask, optimizers=(optimizer, None), save_strategy="no")
    policy, head = policy_state(trainer), mask_state(trainer)
    trainer.train()
    assert moved(policy, policy_state(trainer)) > 1e-4
    assert moved(head, mask_state(trainer)) > 1e-4


def test_the_next_trainer_starts_from_a_plain_saved_folder(tmp_path: Path, rows: Dataset) -> None:
    """Training goes on in a second stage: the saved policy as model, its mask handed in."""
    first = saving(tmp_path / "one", rows, save_strategy="no")
    first.train()
    first.save_model()
    mask = load_mask(tmp_path / "one")
    second = saving(tmp_path / "two", rows, model=str(tmp_path / "one"), mask=mask, save_strategy="no", max_steps=2)
    assert_same(mask_state(second), mask_state(first))
    second.train()
    assert second.masker.training
    assert moved(mask_state(first), mask_state(second)) > 1e-5


def test_unprepared_rows_are_not_needed_twice(tmp_path: Path) -> None:
    """A trainer's own prepared dataset goes into the next trainer as it is."""
    first = saving(tmp_path, preference_rows(4), max_steps=1)
    assert saving(tmp_path, first.train_dataset).train_dataset.column_names == first.train_dataset.column_names


def test_a_clip_norm_that_nothing_reads_is_refused(tmp_path: Path, rows: Dataset) -> None:
    with pytest.raises(
        ValueError, match=r"mask_max_grad_norm=0\.5 is not supported: with max_grad_norm=0\.0 Trainer clips"
    ):
        saving(tmp_path, rows, mask_max_grad_norm=0.5, max_grad_norm=0.0)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, rows: Dataset) -> None:
    config = run_config(tmp_path)
    config._n_gpu = 2  # as on a machine with two
    with pytest.raises(ValueError, match="n_gpu=2 is not supported: one process with several GPUs"):
        build(config, rows)
