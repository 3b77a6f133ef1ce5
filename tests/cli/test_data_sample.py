"""``sparsepo data sample``, from prompts to pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.reward_flags import REWARD_KINDS
from sparsepo.evaluation.rewards import REWARDS
from tests.cli.conftest import Outcome
from tests.evaluation.fake_server import completions, serving

Call = Callable[..., Outcome]


def test_rewards_are_named_in_the_help() -> None:
    assert list(REWARD_KINDS) == [kind.usage for kind in REWARDS.values()]


def test_from_a_model_to_pairs(sparsepo: Call, tmp_path: Path, model_folder: Path, held_out_file: Path) -> None:
    scored = tmp_path / "scored.jsonl"
    arguments = ("--prompts", held_out_file, "--limit", 4, "--n", 6, "--max_new_tokens", 12, "--reward", "playground")
    result = sparsepo("data", "sample", "--model", model_folder, *arguments, "--output", scored, "--use_cpu")
    assert result.status == 0, result.err
    assert "4 prompts × 6 completions" in result.out
    assert "wrote 24 completions" in result.out
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert {row["settings"]["model"] for row in rows} == {str(model_folder)}
    again = sparsepo("data", "sample", "--model", model_folder, *arguments, "--output", scored)
    assert again.status == 1
    assert "exists; give --overwrite" in again.err
    for place, row in enumerate(rows):  # random weights say nothing that the playground's words would tell apart
        row["reward"] = place % 6
    scored.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = sparsepo("data", "pairs", scored, "--output", tmp_path / "pairs.jsonl")
    assert result.status == 0, result.err
    assert "24 rows, 4 prompts → 4 pairs" in result.out


def test_from_a_server(sparsepo: Call, tmp_path: Path, held_out_file: Path) -> None:
    with serving(completions) as (url, seen):
        result = sparsepo(
            *("data", "sample", "--server", url, "--server_model", "m", "--prompts", held_out_file, "--n", 2),
            *("--output", tmp_path / "scored.parquet"),
        )
    assert result.status == 0, result.err
    assert "wrote 16 completions" in result.out
    assert "50.0% ended by themselves" in result.out
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "Give --model, or --server with --server_model"),
        (("--model", "{model}", "--server", "http://x/v1"), "and not both"),
        (("--server", "http://x/v1"), "--server needs --server_model"),
        (("--model", "{model}", "--server_parallel", 2), "--server_parallel has no effect without --server"),
        (("--server", "http://x/v1", "--server_model", "m", "--use_cpu"), "--use_cpu has no effect without --model"),
        (("--model", "{model}", "--reward", "nice"), "reward 'nice' is unknown; rewards are"),
        (("--model", "{model}", "--reward_reads", "both"), "--reward_reads has no effect without --reward"),
        (("--model", "./nowhere"), "model=./nowhere: no such folder"),
        (("--model", "{model}", "--n", 0), "samples=0 must be at least 1"),
        (("--model", "{model}", "--max_new_tokens", 128), "more than the model's 128 positions"),
        (("--model", "{model}", "--rename", "a"), "write OLD=NEW"),
    ],
)
def test_wrong_calls(
    sparsepo: Call, tmp_path: Path, model_folder: Path, held_out_file: Path, flags: tuple[Any, ...], said: str
) -> None:
    given = [str(flag).format(model=model_folder) for flag in flags]
    result = sparsepo("data", "sample", "--prompts", held_out_file, "--output", tmp_path / "o.jsonl", *given)
    assert result.status == 1
    assert said in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())
