"""``sparsepo code`` and ``sparsepo data code-pairs`` as they are typed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.main import main
from tests.evaluation.test_code import MBPP


@pytest.fixture
def mbpp_file(tmp_path: Path) -> str:
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    return str(path)


def test_nothing_is_run_or_written_without_consent(
    mbpp_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["code", "model", "--benchmark", "mbpp", "--data", mbpp_file, "--output", str(out)]) == 1
    assert "--allow-code-execution" in capsys.readouterr().err
    assert not out.exists()
    pairs = tmp_path / "pairs.jsonl"
    assert main(["data", "code-pairs", mbpp_file, "--output", str(pairs)]) == 1
    assert "--allow-code-execution" in capsys.readouterr().err
    assert not pairs.exists()


def test_samples_are_scored_and_the_folder_goes_on(
    mbpp_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"task_id": row["task_id"], "completion": row["code"]} for row in MBPP if row["task_id"] > 10]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "completion": "x"}, rows[1]]))
    out = tmp_path / "out"
    command = ["code", "--samples", str(samples), "--benchmark", "mbpp", "--data", mbpp_file, "--output", str(out)]
    command += ["--k", "1", "2", "--allow-code-execution"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "75.0%" in printed
    assert "100.0%" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["passed"] == {"11": 1, "12": 2}
    assert summary["kinds"] == {"passed": 3, "exception": 1}
    assert main(command) == 0
    assert main([*command, "--split", "all"]) == 1  # other settings, and not all of them are there
    assert main([*command, "--n", "3"]) == 1
    assert "no effect with --samples" in capsys.readouterr().err
    assert main([*command, "--k", "9"]) == 1
    assert "pass@9 needs at least 9 samples" in capsys.readouterr().err


def test_a_model_is_sampled_once(
    tmp_path: Path, mbpp_file: str, byte_model: str, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["code", byte_model, "--benchmark", "mbpp", "--data", mbpp_file, "--prompt", "task", "--n", "2"]
    command += ["--max_new_tokens", "8", "--use_cpu", "--output", str(out), "--allow-code-execution"]
    assert main(command) == 0
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(row["prompt_number"], row["sample"], row["seed"]) for row in rows] == [
        (0, 0, 0),
        (0, 1, 0),
        (1, 0, 0),
        (1, 1, 0),
    ]
    monkeypatch.setattr("sparsepo.cli.models.load_for_sampling", lambda *a: pytest.fail("sampled again"))
    assert main(command) == 0
    assert main([*command, "--temperature", "0.1"]) == 1
    weights = Path(byte_model) / "model.safetensors"
    os.utime(weights, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns + 1_000_000))
    capsys.readouterr()
    assert main(command) == 1  # trained again since, into the same folder
    assert "other settings (model_files)" in capsys.readouterr().err


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.support import tiny_model

    letters = {letter: place for place, letter in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("byte_model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    model: Any = tiny_model("gpt2", vocab_size=len(letters), n_positions=512, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    return str(folder)


def test_code_pairs_are_written_apart_by_task(
    mbpp_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    command = ["data", "code-pairs", mbpp_file, "--output", str(pairs), "--eval_fraction", "0.4", "--pairs", "1"]
    assert main([*command, "--allow-code-execution"]) == 0
    assert "5 tasks → 5 pairs" in capsys.readouterr().out
    parts = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in (pairs, tmp_path / "pairs.eval.jsonl")
    ]
    assert [len(part) for part in parts] == [3, 2]
    assert not {row["prompt"] for row in parts[0]} & {row["prompt"] for row in parts[1]}
