"""``sparsepo reward-model``: three kinds of rows, learnt and judged on others."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.evaluation.reward_training import RewardTraining, judge_reward, train_reward
from sparsepo.evaluation.rewards import get_reward
from tests.cli.conftest import Outcome, write_rows

Call = Callable[..., Outcome]
GOOD, BAD = ("good", "fine", "bright", "warm"), ("bad", "awful", "dull", "cold")


def text(rng: random.Random, words: tuple[str, ...]) -> str:
    return f"the {rng.choice(('film', 'story', 'actor'))} was {rng.choice(words)} and {rng.choice(words)}"


def labelled(path: Path, count: int = 40) -> Path:
    rng = random.Random(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name, words in (("pos", GOOD), ("neg", BAD)):
            archive.writestr(f"x/s.{name}", "\n".join(f"{text(rng, words)} {number}" for number in range(count)))
    return path


def scored(path: Path) -> Path:
    rng = random.Random(1)
    rows = [
        {"prompt": f"review {number}", "text": text(rng, words), "reward": reward}
        for number in range(24)
        for words, reward in ((GOOD, 2.0), (BAD, -1.0))
    ]
    return write_rows(path, rows)


def paired(path: Path) -> Path:
    rng = random.Random(2)
    rows = [
        {"prompt": f"review {number}:", "chosen": " " + text(rng, GOOD), "rejected": " " + text(rng, BAD)}
        for number in range(40)
    ]
    return write_rows(path, rows)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    sizes = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    path.write_text(json.dumps({**sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}))
    return path


@pytest.mark.parametrize(("make", "kind"), [(labelled, "classifier"), (scored, "regression"), (paired, "regression")])
def test_what_is_learnt_is_judged_on_other_rows(
    sparsepo: Call, tmp_path: Path, config_file: Path, make: Callable[[Path], Path], kind: str
) -> None:
    data = make(tmp_path / ("data.zip" if make is labelled else "data.jsonl"))
    out = tmp_path / "out"
    arguments = ("reward-model", data, "--init_from_config", config_file, "--vocab_size", 320, "--output", out)
    more = (
        "--epochs",
        16,
        "--batch_size",
        8,
        "--learning_rate",
        5e-3,
        "--held_out",
        0.25,
        "--max_length",
        40,
        "--use_cpu",
    )
    result = sparsepo(*arguments, *more)
    assert result.status == 0, result.err
    assert "held-out accuracy" in result.out
    assert f"--reward {kind}:{out}" in result.out
    content = json.loads((out / "reward_model.json").read_text())
    assert content["held_out"]["accuracy"] > 0.9
    assert content["append_end"] is True
    assert not (out / "training").exists()
    assert not list(out.rglob("*.bin"))
    reward = get_reward(f"{kind}:{out}")
    high, low = reward(["review 99:"] * 2, ["the film was good and warm", "the film was bad and dull"])
    assert high > low
    again = sparsepo(*arguments, *more)
    assert again.status == 1
    assert "holds a model: --overwrite replaces it" in again.err


def test_a_reward_model_starts_from_a_language_model_and_goes_on_after_an_interruption(
    tmp_path: Path, model_folder: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, TrainerCallback

    from tests.support import tiny_tokenizer

    rng = random.Random(0)
    rows = [{"prompt": f"a {n}", "chosen": text(rng, GOOD), "rejected": text(rng, BAD)} for n in range(12)]

    def fit(folder: Path, callbacks: Any = (), **changes: Any) -> None:
        import torch

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1, pad_token_id=0)
        settings = RewardTraining(**{"epochs": 3.0, "batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, **changes})
        train_reward(model, tiny_tokenizer(), rows, "pairs", folder, settings, callbacks)

    class Stops(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch and state.epoch >= 2:
                raise KeyboardInterrupt

    fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", [Stops()])
    with pytest.raises(ValueError, match="unfinished run of other settings"):
        fit(tmp_path / "parts", batch_size=2)
    fit(tmp_path / "parts")
    whole, parts = (get_reward(f"regression:{tmp_path / name}")(["a"], ["the film"]) for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, abs=1e-6)
    judged = judge_reward(tmp_path / "whole", rows, "pairs", use_cpu=True)
    assert judged["rows"] == 12
    assert judged["low"] < judged["accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{zip}",), "Give --model, or --init_from_config"),
        (("{zip}", "--model", "{model}", "--vocab_size", 300), "--vocab_size has no effect"),
        (("./no.zip", "--model", "{model}"), "no such file or folder"),
        (
            ("{zip}", "{pairs}", "--model", "{model}"),
            "hold labelled texts and preference pairs; give files of one kind",
        ),
        (("{zip}", "--model", "{model}", "--held_out", 1.5), "--held_out 1.5 must lie between 0 and 1"),
        (("{zip}", "--model", "{model}", "--epochs", 0), "epochs=0.0 must be above 0"),
        (("{zip}", "--model", "./nowhere"), "model=./nowhere: no such folder"),
    ],
)
def test_wrong_calls(sparsepo: Call, tmp_path: Path, model_folder: Path, arguments: tuple[Any, ...], said: str) -> None:
    names = {"zip": labelled(tmp_path / "a.zip", 4), "pairs": paired(tmp_path / "b.jsonl"), "model": model_folder}
    result = sparsepo("reward-model", *(str(a).format(**names) for a in arguments), "--output", tmp_path / "out")
    assert result.status == 1
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()
