"""Dispatch, exit statuses and suggestions of the command itself."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import sparsepo
from sparsepo.cli import main as entry
from sparsepo.cli.base import RENAMED, CliError, advise
from sparsepo.cli.saved_runs import OBJECTIVES as EVALUATE_OBJECTIVES
from sparsepo.objectives import OBJECTIVES
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]


def test_version_names_what_it_stands_on(sparsepo: Call) -> None:
    import torch
    import transformers
    import trl

    result = sparsepo("--version")
    assert result.status == 0
    torch_version = torch.__version__.split("+")[0]  # an installed package may name its build, or not
    for text in (f"trl {trl.__version__}", f"transformers {transformers.__version__}", f"torch {torch_version}"):
        assert text in result.out


def test_help_lists_the_commands(sparsepo: Call) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        result = sparsepo(*arguments)
        assert result.status == 0
        for command in entry.COMMANDS:
            assert command in result.out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["sft", "--help"], ["data", "--help"],
                                       ["evaluate", "--help"], ["merge", "--help"], ["demo", "--help"],
                                       ["frontier", "--help"], ["reward-model", "--help"],
                                       ["data", "sample", "--help"]])  # fmt: skip
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from sparsepo.cli.main import main; status = main({arguments!r}); "
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'numpy'} & set(sys.modules); "
        "sys.exit(status or (f'imported: {sorted(heavy)}' if heavy else 0))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout or "sparsepo" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["quux"], "unknown command 'quux'\n"),
        (["--vresion"], "unknown flag --vresion; did you mean --version?"),
        (["train", "--mask_sharng", "common"], "unknown flag --mask_sharng; did you mean --mask_sharing?"),
        (["train", "--mask-sharng=common"], "unknown flag --mask-sharng; did you mean --mask_sharing?"),
        (["train", "--warmup_ratio", "0.1"], "unknown flag --warmup_ratio; use --warmup_steps (a value below 1"),
        (["train", "--learning"], "unknown flag --learning"),  # an abbreviation is no flag
        (["train", "--beta", "much"], "invalid float value: 'much'"),
        (["train", "--objective", "sparsep"], "'sparsep' is not one of sparsepo, mapo"),
        (["train", "pairs.jsonl"], "unexpected argument 'pairs.jsonl'"),
        (["sft", "--vocab-sise", "9"], "unknown flag --vocab-sise; did you mean --vocab_size?"),
        (["evaluate", "a", "b", "--ref-model", "c"], "unknown flag --ref-model; did you mean --ref_model?"),
        (["evaluate", "a"], "the following arguments are required: data"),
        (["merge", "a", "b", "--dtype", "float23"], "bfloat16, float16; did you mean float32?"),
        (["data", "chekc"], "'chekc' is not one of"),
        (["demo", "--sed", "1"], "unknown flag --sed; did you mean --seed?"),
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_with_a_suggestion(sparsepo: Call, arguments: list[str], said: str) -> None:
    result = sparsepo(*arguments)
    assert result.status == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_advice_only_names_what_exists() -> None:
    assert advise("ref_model", {"beta"}) == ""
    assert advise("torch_dtype", {"dtype"}) == "; use dtype"
    assert advise("ref-model", {"ref_model", "ref_model_name_or_path"}) == "; did you mean ref_model?"


def test_advice_on_renamed_flags_names_flags_of_train() -> None:
    from sparsepo.cli.train import parser

    known = set(parser().hints)
    for old, (new, _) in RENAMED.items():
        assert new in known
        assert old not in known, f"{old} is a flag now: its advice would mislead"


class _Failing:
    """A command whose work raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        def work(namespace: argparse.Namespace) -> int:
            raise self.error

        subparsers.add_parser("merge").set_defaults(func=work)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CliError("the mend"), 1, "sparsepo merge: error: the mend\n"),
        (ValueError("beta=0 must be above 0."), 1, "error: beta=0 must be above 0.\n"),
        (FileNotFoundError(2, "No such file", "x.json"), 1, "x.json"),
        (KeyboardInterrupt(), 130, "sparsepo merge: interrupted\n"),
        (SystemExit(3), 3, ""),
        (SystemExit("stopped"), 1, "stopped\n"),
    ],
)
def test_exit_statuses(
    sparsepo: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "sparsepo.cli.merge", _Failing(error))
    result = sparsepo("merge")
    assert (result.status, said in result.err, "Traceback" in result.err) == (status, True, False)


def test_debug_shows_the_traceback(sparsepo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparsepo.cli.merge", _Failing(ValueError("the mend")))
    monkeypatch.setenv("SPARSEPO_DEBUG", "0")
    assert "Traceback" not in sparsepo("merge").err
    monkeypatch.setenv("SPARSEPO_DEBUG", "1")
    result = sparsepo("merge")
    assert result.status == 1
    assert "Traceback" in result.err
    monkeypatch.setenv("SPARSEPO_DEBUG", "")
    assert "Traceback" in sparsepo("--debug", "merge").err
    assert os.environ["SPARSEPO_DEBUG"] == "1"


def test_running_out_of_memory_names_what_to_lower(sparsepo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setitem(sys.modules, "sparsepo.cli.merge", _Failing(torch.OutOfMemoryError("CUDA out of memory.")))
    result = sparsepo("merge")
    assert result.status == 1
    assert "CUDA out of memory. (lower per_device_train_batch_size" in result.err


def test_a_bug_is_not_hidden(sparsepo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparsepo.cli.merge", _Failing(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        sparsepo("merge")


def test_repeated_names_agree_with_the_package() -> None:
    assert set(EVALUATE_OBJECTIVES) == set(OBJECTIVES)
    assert sparsepo.__version__ in entry.version_line()
