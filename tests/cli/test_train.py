"""``sparsepo train`` from files to a saved model, and every way to call it wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from sparsepo import load_mask
from sparsepo.cli import preference_sets, run_folder, sft
from sparsepo.training import parallelism
from sparsepo.training.sealing import HOLDER
from tests.cli.conftest import SHORT_RUN, Outcome, write_rows

Call = Callable[..., Outcome]


def train(sparsepo: Call, model: Path, data: Any, out: Path, *flags: Any) -> Outcome:
    return sparsepo(
        "train", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, *SHORT_RUN, *flags
    )


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "train_summary.json").read_text(encoding="utf-8")))


def test_from_pairs_to_a_plain_model(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, held_out_file: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    result = train(
        sparsepo, model_folder, pairs_file, out, "--eval_dataset", held_out_file, "--mask_sharing=independent"
    )
    assert result.status == 0, result.err
    assert "16 rows, 16 kept, 0 dropped" in result.out
    assert "reward mask, share of zeros" in result.out
    assert "step 2/2  loss" in result.out
    AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__module__.startswith("transformers")
    load_mask(out, model)
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, out))
    assert set(before) == set(after)
    assert any(not before[name].equal(after[name]) for name in before)
    assert not list(out.rglob("*.bin"))

    summary = summary_of(out)
    assert summary["objective"]["name"] == "sparsepo"
    assert summary["mask"]["sharing"] == "independent"
    assert summary["steps"] == 2
    assert {"trl", "torch", "sparsepo"} <= set(summary["versions"])
    assert summary["command"].startswith(f"sparsepo train --model_name_or_path {model_folder}")
    assert {"loss", "rewards/accuracies", "kl/chosen", "mask/effective_beta"} <= set(summary["metrics"]["evaluation"])
    assert summary["metrics"]["evaluation"]["kl/chosen"] > 0
    assert [report["rows"] for report in summary["data"]] == [8, 16]


def test_a_recipe_with_flags_over_it(sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {model_folder}\ndataset_name: {pairs_file}\nobjective: tdpo2\nalpha: 0.25\n"
        "eval_fraction: 0.25\nlearning_rate: 1e-4\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    result = sparsepo("train", f"--config={recipe}", "--output_dir", out, *SHORT_RUN, "--beta", "0.4")
    assert result.status == 0, result.err
    assert "evaluation data: 4 pairs set apart, 12 left to train on" in result.out
    summary = summary_of(out)
    assert summary["objective"]["name"] == "tdpo2"
    assert (summary["objective"]["alpha"], summary["objective"]["beta"]) == (0.25, 0.4)
    assert summary["settings"]["learning_rate"] == 1e-3  # the flag's, not the recipe's
    assert summary["mask"] is None
    assert not (out / "mask").exists()


def test_scored_completions_become_pairs(sparsepo: Call, tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {"prompt": f"the film {title}", "text": text, "reward": reward}
        for title in ("good", "bad", "fine", "dull")
        for text, reward in (("was good", 1.0), ("was bad", 0.0), ("was fine", 0.5))
    ]
    data = write_rows(tmp_path / "scored.jsonl", rows)
    result = train(
        sparsepo, model_folder, data, tmp_path / "out", "--pairs=all", "--pairs_margin=0.6", "--objective=dpo"
    )
    assert result.status == 0, result.err
    assert "12 rows, 4 prompts → 4 pairs" in result.out
    assert summary_of(tmp_path / "out")["data"][0]["rows"] == 4


def test_lora_up_to_the_merged_model(sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    out = tmp_path / "out"
    flags = ("--use_peft", "--lora_r=2", "--lora_target_modules", "c_attn")
    result = train(sparsepo, model_folder, pairs_file, out, *flags)
    assert result.status == 0, result.err
    assert (out / "adapter_config.json").is_file()
    assert (out / "mask" / "mask.safetensors").is_file()
    # and on from that adapter
    again = train(sparsepo, out, pairs_file, tmp_path / "more")
    assert again.status == 0, again.err
    both = train(sparsepo, out, pairs_file, tmp_path / "both", *flags)
    assert both.status == 1
    assert "is an adapter already" in both.err
    # merged, it is a plain model that keeps its mask, and gives the same metrics as the adapter
    merged = sparsepo("merge", out, tmp_path / "merged")
    assert merged.status == 0, merged.err
    assert load_mask(tmp_path / "merged").kind == "learned"
    assert sparsepo("merge", out, tmp_path / "merged").status == 1
    assert "needs no merging" in sparsepo("merge", model_folder, tmp_path / "x").err
    values = []
    for folder in (out, tmp_path / "merged"):
        reference = ("--ref_model", model_folder)
        result = sparsepo("evaluate", folder, pairs_file, *reference, "--json", tmp_path / "e.json", "--use_cpu")
        assert result.status == 0, result.err
        values.append(json.loads((tmp_path / "e.json").read_text())["metrics"])
    for name in ("loss", "rewards/margins", "kl/chosen", "mask/reward/mean"):
        assert values[0][name] == pytest.approx(values[1][name], rel=1e-4, abs=1e-6)


def test_resuming_equals_going_through(sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    flags = ("--save_strategy=steps", "--save_steps=1", "--mask_dropout=0.2", "--lr_scheduler_type=constant")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(sparsepo, model_folder, pairs_file, whole, *flags).status == 0
    assert train(sparsepo, model_folder, pairs_file, cut, *flags).status == 0
    shutil.rmtree(cut / "checkpoint-2")
    (cut / "model.safetensors").unlink()
    assert train(sparsepo, model_folder, pairs_file, cut, *flags).status == 1  # it holds a run
    result = train(sparsepo, model_folder, pairs_file, cut, *flags, "--resume_from_checkpoint=auto")
    assert result.status == 0, result.err
    for file in ("model.safetensors", "mask/mask.safetensors"):
        one, other = load_file(whole / file), load_file(cut / file)
        assert all(one[name].equal(other[name]) for name in one)


def test_an_old_run_is_kept_unless_told(sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path) -> None:
    out = tmp_path / "out"
    assert train(sparsepo, model_folder, pairs_file, out, "--objective=dpo").status == 0
    again = train(sparsepo, model_folder, pairs_file, out, "--objective=tdpo1")
    assert again.status == 1
    assert "holds a finished run: --overwrite_output_dir replaces it" in again.err
    assert summary_of(out)["objective"]["name"] == "dpo"
    over = train(sparsepo, model_folder, pairs_file, out, "--objective=tdpo1", "--overwrite_output_dir")
    assert over.status == 0, over.err
    assert summary_of(out)["objective"]["name"] == "tdpo1"


def test_bad_rows_are_dropped_and_told_or_stop_the_run(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    rows[3]["chosen"] = "   "
    data = write_rows(tmp_path / "bad.jsonl", rows)
    result = train(sparsepo, model_folder, data, tmp_path / "out", "--objective=dpo")
    assert result.status == 0, result.err
    assert "16 rows, 15 kept, 1 dropped" in result.out
    strict = train(sparsepo, model_folder, data, tmp_path / "strict", "--strict")
    assert strict.status == 1
    assert "row 3, chosen: empty or blank completion" in strict.err
    assert "Traceback" not in strict.err
    assert not (tmp_path / "strict").exists()


def test_streamed_data_and_mixtures(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, held_out_file: Path
) -> None:
    streamed = train(sparsepo, model_folder, pairs_file, tmp_path / "s", "--dataset_streaming", "--objective=dpo")
    assert streamed.status == 0, streamed.err
    assert "0 rows" not in streamed.out
    assert summary_of(tmp_path / "s")["data"][0]["kept"] >= 8  # as many as two steps read
    refused = train(sparsepo, model_folder, pairs_file, tmp_path / "x", "--dataset_streaming", "--eval_fraction=0.1")
    assert "with dataset_streaming give eval_dataset" in refused.err
    recipe = tmp_path / "mixture.yaml"
    sources = "".join(f"  - path: json\n    data_files: {file}\n" for file in (pairs_file, held_out_file))
    recipe.write_text(
        f"model_name_or_path: {model_folder}\nobjective: dpo\ndatasets:\n{sources}test_split_size: 0.25\n"
    )
    mixed = sparsepo("train", f"--config={recipe}", f"--output_dir={tmp_path}/m", *SHORT_RUN)
    assert mixed.status == 0, mixed.err
    assert [report["rows"] for report in summary_of(tmp_path / "m")["data"]] == [6, 18]
    both = sparsepo("train", f"--config={recipe}", f"--output_dir={tmp_path}/b", f"--dataset_name={pairs_file}")
    assert "datasets and dataset_name exclude each other" in both.err


def test_rows_no_longer_than_the_model(sparsepo: Call, tmp_path: Path, model_folder: Path) -> None:
    rows = [{"prompt": "the film", "chosen": " good" * 200 + f" {word}", "rejected": " bad" * 200 + f" {word}"}
            for word in ("fine", "dull", "warm", "cold")]  # fmt: skip
    data = write_rows(tmp_path / "long.jsonl", rows)
    result = train(sparsepo, model_folder, data, tmp_path / "out", "--objective=dpo")
    assert result.status == 0, result.err  # 1024 tokens would leave GPT-2's table of 128 positions
    assert "max_length 1024 → 128: the model has no more positions" in result.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model_name_or_path",), "expected one argument"),
        (("--dataset_name=pairs.jsonl",), "No model: give --model_name_or_path"),
        (("--model_name_or_path={model}",), "No data: give --dataset_name"),
        (("--model_name_or_path=./nowhere", "--dataset_name={pairs}"), "no such folder"),
        (("--model_name_or_path={pairs}", "--dataset_name={pairs}"), "is a file; give the folder"),
        (("--model_name_or_path={empty}", "--dataset_name={pairs}"), "holds no model (no config.json)"),
        (("--model_name_or_path={model}", "--dataset_name={model}/pairs.jsonl"), "No file"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--eval_strategy=epoch"), "needs evaluation pairs"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--eval_fraction=2"), "must lie between 0 and 1"),
        (
            ("--model_name_or_path={model}", "--dataset_name={pairs}", "--eval_fraction=0.1", "--eval_dataset=x"),
            "exclude each other",
        ),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--pairs=all"), "pairs='all' has no effect"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--rename", "a:b"), "must be OLD=NEW"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--rename", "a=b"), "no column 'a'"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--output_dir={model}"), "training starts from"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--resume_from_checkpoint=last"), "no checkpoint"),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--objective=dpo", "--mask=learned"), "no effect"),
        # settings are refused before the data are looked for: those may be large, or far away
        (
            ("--model_name_or_path={model}", "--dataset_name=nowhere.jsonl", "--padding_free"),
            "padding_free=True is not",
        ),
        (
            ("--model_name_or_path={model}", "--dataset_name=nowhere.jsonl", "--objective=dpo", "--mask_gate=topk"),
            "mask_gate='topk' has no effect",
        ),
        (("--model_name_or_path={model}", "--dataset_name={pairs}", "--num_processes=2"), "without accelerate_config"),
        (
            ("--model_name_or_path={model}", "--dataset_name={pairs}", "--accelerate_config=multi_gp"),
            "did you mean multi_gpu?",
        ),
        (
            ("--model_name_or_path={model}", "--dataset_name={pairs}", "--ref_model_name_or_path=./nowhere"),
            "ref_model_name_or_path=./nowhere: no such folder",
        ),
        (("--config=nowhere.yaml",), "--config nowhere.yaml: no such file"),
    ],
)
def test_wrong_calls_say_what_to_do(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, flags: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"model": model_folder, "pairs": pairs_file, "empty": tmp_path / "empty"}
    given = [flag.format(**names) for flag in flags]
    result = sparsepo("train", *SHORT_RUN, f"--output_dir={tmp_path}/out", *given)
    assert result.status == (2 if "expected one argument" in said else 1)
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_quantised_weights_without_their_library(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallelism, "find_spec", lambda name: None)
    result = train(sparsepo, model_folder, pairs_file, tmp_path / "out", "--load_in_4bit", "--use_peft")
    assert result.status == 1
    assert "load_in_4bit=True needs bitsandbytes, which is not installed" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_without_an_adapter(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setattr(parallelism, "find_spec", lambda name: True)
    result = train(sparsepo, model_folder, pairs_file, tmp_path / "out", f"--load_in_{bits}bit")
    assert result.status == 1
    assert f"load_in_{bits}bit=True without an adapter" in result.err
    assert not (tmp_path / "out").exists()


def test_a_run_that_the_health_monitor_ends_is_no_success(
    sparsepo: Call, tmp_path: Path, model_folder: Path, pairs_file: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--max_steps=4", "--mask_l1_reward=1e-6", "--mask_on_failure=stop")
    result = train(sparsepo, model_folder, pairs_file, out, *flags)
    assert result.status == 1
    assert "mask_on_failure=stop ended training at step 3: only 0 % of the common mask is zero" in result.err
    assert (out / "checkpoint-3" / "mask" / "mask.json").is_file()
    assert not (out / "train_summary.json").exists()


@pytest.mark.parametrize("command", ["train", "sft"])
def test_the_folder_is_held_from_the_first_row_to_the_last_file(
    sparsepo: Call, model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out, held = tmp_path / "out", {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            held[name] = (out / HOLDER).is_file()
            return function(*args, **kwargs)

        return noted

    rows = (preference_sets, "preference_sets") if command == "train" else (sft, "_texts")
    for name, place in {"rows": rows, "summary": (run_folder, "write_summary"), "end": (Trainer, "end")}.items():
        monkeypatch.setattr(*place, noting(name, getattr(*place)))
    data = ("--dataset_name", pairs_file)
    done = sparsepo(command, "--model_name_or_path", model_folder, *data, "--output_dir", out, *SHORT_RUN)
    assert done.status == 0, done.err
    assert held == {"rows": True, "summary": True, "end": True}
    assert not (out / HOLDER).exists()
