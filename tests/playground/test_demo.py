"""The demo from end to end, in its fast form."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo.cli import demo as cli_demo
from sparsepo.playground.demo import DemoSettings, run_demo
from sparsepo.playground.display import Stages, legend, masked_text
from sparsepo.playground.world import World


def run(output_dir: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    text = io.StringIO()
    console = Console(file=text, width=140, force_terminal=False)
    settings = DemoSettings(**changes).fast()
    return run_demo(output_dir, cli_demo.train_preferences, settings, console), text.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, *run(folder)


def test_leaves_a_plain_model_with_its_mask(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, results, _ = finished
    assert json.loads((folder / "demo.json").read_text()) == results
    assert {file.name for file in (folder / "mask").iterdir()} == {"mask.safetensors", "mask.json"}
    policy, supervised = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, folder / "sft"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the film was", return_tensors="pt")
    assert not torch.equal(policy(**ids).logits, supervised(**ids).logits)


def test_numbers_are_complete_and_sane(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, results, _ = finished
    assert results["before"]["kl"]["mean"] == 0
    assert results["after"]["kl"]["mean"] > 0
    assert 0 < results["after"]["reward"]["mean"] < 1
    assert results["effective_beta"] == pytest.approx(0.5 * results["masks"]["reward_mask"]["mean"])
    assert set(results["auc"]) == {"reward_mask", "kl_mask", "entropy", "uniform", "log_ratio", "ceiling"}
    assert results["auc"]["uniform"]["chosen"] == 0.5
    assert results["train_pairs"] > 0


def test_output_reads_without_a_terminal(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, text = finished
    for piece in (
        "1/6",
        "6/6",
        "reward of samples",
        "sequence KL",
        "exact zeros",
        "effective β",
        "ceiling",
        str(folder),
    ):
        assert piece in text, piece
    assert "\x1b[" not in text
    assert "word:0 exactly zero" in text


def test_same_seed_same_numbers(finished: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    _, first, _ = finished
    again, _ = run(tmp_path)
    varying = ("seconds", "log")
    assert {k: v for k, v in again.items() if k not in varying} == {k: v for k, v in first.items() if k not in varying}


@pytest.mark.parametrize("objective", ["dpo", "mapo", "simpo"])
def test_other_objectives(objective: str, tmp_path: Path) -> None:
    results, text = run(tmp_path, objective=objective)
    assert results["objective"] == objective
    assert bool(results["masks"]) == (objective == "mapo")
    assert ("reward mask" in text) == (objective == "mapo")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsepo.playground import demo

    parser = argparse.ArgumentParser()
    cli_demo.add_parser(parser.add_subparsers())
    args = parser.parse_args(["demo", "--output_dir", str(tmp_path), "--seed", "4", "--objective", "dpo", "--fast"])
    seen: list[Any] = []
    monkeypatch.setattr(demo, "run_demo", lambda *given: seen.extend(given))
    assert args.func(args) == 0
    assert seen[0] == str(tmp_path)
    assert seen[2] == DemoSettings(seed=4, objective="dpo").fast()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupt)
    assert args.func(args) == 130
    assert "Interrupted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parser.parse_args(["demo", "--out", "x"])  # no abbreviations


def test_objective_names_are_the_librarys() -> None:
    from sparsepo.objectives import OBJECTIVES

    assert tuple(OBJECTIVES) == cli_demo.OBJECTIVES


def test_zero_looks_different_from_small_and_preference_words_are_marked() -> None:
    words, mask = ["the", "film", "was", "superb", "dull"], [0.0, 1e-4, 0.5, 1.0, 2.0]
    plain = masked_text(words, mask, World(), largest=1.0, coloured=False).plain
    assert plain == "the:0 film:1 was:5 *superb+*:9 *dull−*:9"
    coloured = masked_text(words, mask, World(), largest=1.0, coloured=True)
    assert coloured.plain == "the film was superb+ dull−"
    styles = {coloured.plain[span.start : span.end]: str(span.style) for span in coloured.spans}
    assert " on " not in styles["the"]
    assert " on " in styles["film"]
    assert len({styles[word] for word in ("the", "film", "was")}) == 3
    assert "underline" in styles["superb+"]
    assert "underline" not in styles["was"]
    assert "zero" in legend(True).plain
    # a mask that is zero everywhere is shown as such
    assert masked_text(["a"], [0.0], World(), largest=0.0, coloured=False).plain == "a:0"


def test_stages_report_quarters_without_a_terminal_and_a_bar_on_one() -> None:
    lines = io.StringIO()
    with Stages(Console(file=lines, force_terminal=False, width=100), 2).stage("work") as report:
        for done in range(1, 9):
            report(done, 8, {"loss": 1.5})
    assert lines.getvalue().count("loss 1.500") == 4
    assert "1/2 work" in lines.getvalue()
    bar = io.StringIO()
    with Stages(Console(file=bar, force_terminal=True, width=100), 2).stage("work") as report:
        report(3, 8, {"loss": 1.5})
    assert "1/2 work" in bar.getvalue()
