"""``sparsepo sft`` and ``sparsepo evaluate``."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparsepo.training.sealing import checkpoint_folders, last_whole
from tests.cli.conftest import SHORT_RUN, Outcome, write_rows

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": f"the film number {number} was good and the story was bad"} for number in range(24)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


def test_a_small_model_from_nothing(sparsepo: Call, tmp_path: Path, texts_file: Path, held_out_file: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    result = sparsepo(
        "sft",
        *SHORT_RUN,
        *("--init_from_config", "gpt2-1m", "--train_tokenizer", "--vocab_size", "300", "--eval_fraction", "0.25"),
        *("--text_files", texts_file, held_out_file, "--output_dir", out, "--max_length", "32"),
    )
    assert result.status == 0, result.err
    assert "New gpt2 of" in result.out
    assert "evaluation perplexity" in result.out
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == len(tokenizer) <= 300
    summary = json.loads((out / "train_summary.json").read_text())
    assert summary["metrics"]["evaluation"]["loss"] > 0
    assert not list(out.rglob("*.bin"))
    # and the next stage takes it
    trained = sparsepo(
        "train",
        *SHORT_RUN,
        *("--model_name_or_path", out, "--dataset_name", held_out_file, "--output_dir", tmp_path / "t"),
    )
    assert trained.status == 0, trained.err


def test_prompt_and_chosen_on_an_existing_model(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--model_name_or_path", model_folder, "--dataset_name", pairs_file, "--output_dir", out)
    result = sparsepo("sft", *SHORT_RUN, *arguments, "--eval_dataset", pairs_file)
    assert result.status == 0, result.err
    assert json.loads((out / "train_summary.json").read_text())["model"] == str(model_folder)
    assert "holds a finished run" in sparsepo("sft", *SHORT_RUN, *arguments).err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "No model"),
        (("--model_name_or_path={model}",), "No texts"),
        (("--model_name_or_path={model}", "--init_from_config=gpt2-1m", "--train_tokenizer"), "exclude each other"),
        (("--model_name_or_path={model}", "--dataset_name=x", "--text_files", "y"), "exclude each other"),
        (("--model_name_or_path={model}", "--vocab_size=9"), "vocab_size=9 has no effect without init_from_config"),
        (("--init_from_config=gpt2-1m",), "needs one of train_tokenizer and tokenizer_name_or_path"),
        (
            ("--model_name_or_path={model}", "--text_files", "{texts}", "--eval_strategy=epoch"),
            "needs evaluation texts",
        ),
        (("--init_from_config=gpt3", "--train_tokenizer", "--text_files", "{texts}"), "neither a file nor one of"),
    ],
)
def test_wrong_calls_of_sft(
    sparsepo: Call, tmp_path: Path, model_folder: Path, texts_file: Path, flags: tuple[str, ...], said: str
) -> None:
    given = [flag.format(model=model_folder, texts=texts_file) for flag in flags]
    result = sparsepo("sft", *SHORT_RUN, f"--output_dir={tmp_path}/out", *given)
    assert result.status == 1
    assert said in result.err


@pytest.mark.parametrize(
    "flags",
    [
        ("--mask_sharing=common", "--mask_l1_reward=0.01", "--mask_l1_kl=0.02"),
        ("--mask_on=reward", "--loss_type=ipo", "--sft_weight=0.1"),
        ("--objective=mapo", "--beta=0.5"),
        ("--objective=tdpo2", "--alpha=0.3", "--kl_anchor=0.05"),
        ("--objective=dpo", "--label_smoothing=0.1"),
        ("--objective=simpo", "--gamma=0.2"),
    ],
    ids=lambda flags: flags[0],
)
def test_evaluation_of_the_saved_folder_equals_the_run_s_own(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, held_out_file: Path, flags: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    arguments = ("--model_name_or_path", model_folder, "--dataset_name", pairs_file, "--output_dir", out)
    result = sparsepo("train", *SHORT_RUN, *arguments, "--eval_dataset", held_out_file, *flags)
    assert result.status == 0, result.err
    result = sparsepo("evaluate", out, held_out_file, "--json", tmp_path / "found.json", "--use_cpu")
    assert result.status == 0, result.err
    assert "rewards/margins" in result.out
    expected = json.loads((out / "train_summary.json").read_text())["metrics"]["evaluation"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pairs"] == 8
    compared = {name for name in expected if "/" in name or name in ("loss", "entropy")}
    assert {"loss", "rewards/margins", "logps/chosen"} <= compared
    for name in compared:
        assert found["metrics"][name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_evaluating_a_plain_model_and_changing_the_objective(
    sparsepo: Call, tmp_path: Path, model_folder: Path, held_out_file: Path
) -> None:
    def metrics(*flags: Any) -> dict[str, float]:
        result = sparsepo("evaluate", model_folder, held_out_file, "--json", tmp_path / "m.json", "--use_cpu", *flags)
        assert result.status == 0, result.err
        return dict(json.loads((tmp_path / "m.json").read_text())["metrics"])

    other = tmp_path / "other"
    from tests.support import perturbed, tiny_model, tiny_tokenizer

    perturbed(tiny_model("gpt2")).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    dpo = metrics("--ref_model", other, "--beta", "0.2")
    tdpo = metrics("--ref_model", other, "--beta", "0.2", "--objective", "tdpo1")
    assert dpo["kl/chosen"] == pytest.approx(tdpo["kl/chosen"])
    assert dpo["loss"] != pytest.approx(tdpo["loss"])
    assert tdpo["rewards/chosen"] - dpo["rewards/chosen"] == pytest.approx(0.2 * dpo["kl/chosen"], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("{model}", "{pairs}"), "does not say what it was trained from: give its reference with --ref_model"),
        (("{model}", "{pairs}", "--ref_model={model}"), "The reference is the model itself"),
        (("{model}", "{pairs}", "--objective=sparsepo"), "has no mask/, which objective sparsepo needs"),
        (("./nowhere", "{pairs}"), "no such folder"),
        (("{model}", "{pairs}.gz", "--ref_model={model}"), "No file"),
        (("{model}", "{pairs}", "--json=./nowhere/x.json"), "there is no folder nowhere"),
        (("{damaged}", "{pairs}"), "sparsepo.json is damaged"),
    ],
)
def test_wrong_calls_of_evaluate(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, flags: tuple[str, ...], said: str
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    (damaged / "sparsepo.json").write_text("{}")
    result = sparsepo("evaluate", *(f.format(model=model_folder, pairs=pairs_file, damaged=damaged) for f in flags))
    assert result.status == 1
    assert said in result.err
    assert "Traceback" not in result.err


SFT = (*SHORT_RUN, "--max_steps=4", "--save_strategy=steps", "--save_steps=1", "--save_total_limit=1")


def sft_trainer_that(monkeypatch: pytest.MonkeyPatch, **methods: Any) -> None:
    """Let the command use a trainer with other methods."""
    from sparsepo.training import sft_trainer

    changed = type("Changed", (sft_trainer.GuardedSFTTrainer,), methods)
    monkeypatch.setattr(sft_trainer, "GuardedSFTTrainer", changed)


def test_sft_stops_at_a_signal_and_goes_on_from_there(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(out: Path) -> Outcome:
        arguments = ("--model_name_or_path", model_folder, "--dataset_name", pairs_file, "--output_dir", out)
        return sparsepo("sft", *SFT, *arguments, "--resume_from_checkpoint=auto")

    assert call(tmp_path / "whole").status == 0

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return super(type(self), self).training_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        sft_trainer_that(patch, training_step=training_step)
        stopped = call(tmp_path / "out")
    assert stopped.status == 143
    assert "SIGTERM: stopped after step 2, which is saved in" in stopped.err
    assert [path.name for path in checkpoint_folders(tmp_path / "out")] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "train_summary.json").exists()
    assert call(tmp_path / "out").status == 0
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_sft_keeps_the_old_checkpoint_until_the_new_one_is_whole(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _complete(self: Any, folder: Path) -> None:
        if folder.name == "checkpoint-2":
            assert (folder.parent / "checkpoint-1").is_dir()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super(type(self), self)._complete(folder)

    sft_trainer_that(monkeypatch, _complete=_complete)
    out = tmp_path / "out"
    arguments = ("--model_name_or_path", model_folder, "--dataset_name", pairs_file, "--output_dir", out)
    failed = sparsepo("sft", *SFT, *arguments)
    assert failed.status == 1
    assert "checkpoint-2 could not be written" in failed.err
    assert "checkpoint-1 is the last whole checkpoint" in failed.err
    assert last_whole(out) == out / "checkpoint-1"
