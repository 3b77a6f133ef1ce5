from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.data import add_parser
from sparsepo.data import DataError
from sparsepo.data.writing import replacing, write_rows
from tests.data.data_support import read_lines, shared_file, write_lines

PAIRS = [{"prompt": f"w{i} a", "chosen": f" w{i} b", "rejected": f" w{i} c"} for i in range(8)]
SCORED = [{"prompt": f"p{i}", "text": t, "reward": r} for i in range(10) for t, r in (("a", 1), ("b", 2), ("c", 3))]


def sparsepo_data(*arguments: Any) -> int:
    parser = argparse.ArgumentParser(prog="sparsepo", allow_abbrev=False)
    add_parser(parser.add_subparsers())
    namespace = parser.parse_args(["data", *map(str, arguments)])
    return namespace.func(namespace)


def test_check_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "chosen": ""}])
    assert sparsepo_data("check", path, "--json", tmp_path / "r.json", "--output", tmp_path / "clean.jsonl") == 0
    printed = capsys.readouterr().out
    assert "9 rows, 8 kept, 1 dropped" in " ".join(printed.split())
    assert "row 8, chosen: empty" in printed
    assert json.loads((tmp_path / "r.json").read_text())["findings"][0]["code"] == "empty_completion"
    assert read_lines(tmp_path / "clean.jsonl")[7] == {**PAIRS[7], "row_id": 7}


def test_check_strict_and_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "chosen": ""}])
    with pytest.raises(DataError, match="row 8, chosen: empty or blank completion"):
        sparsepo_data("check", path, "--strict")
    assert "row 8, chosen: empty" in capsys.readouterr().out  # the table comes before the error
    with pytest.raises(DataError, match=r"more than max_dropped=0\.1 allows"):
        sparsepo_data("check", path, "--max_dropped", "0.1")


def test_check_with_tokenizer_and_eval(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.save_pretrained(tmp_path / "tok")
    path = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    held = write_lines(tmp_path / "held.jsonl", PAIRS[:1])
    options = ["--tokenizer", tmp_path / "tok", "--max-length", "3", "--max_lost", "1", "--eval", held, "--json", "-"]
    assert sparsepo_data("check", path, *options, "--keep", "eval_pair", "identical_cut") == 0
    report = json.loads(capsys.readouterr().out)
    assert {f["code"]: f["rows"] for f in report["findings"]}["eval_pair"] == 1
    assert {f["code"]: f["rows"] for f in report["findings"]}["truncated"] == 8
    with pytest.raises(ValueError, match="--drop and --keep both name duplicate"):
        sparsepo_data("check", path, "--drop", "duplicate", "--keep", "duplicate")


def test_check_refuses_a_folder_without_tokenizer(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        sparsepo_data("check", path, "--tokenizer", tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="the folder holds no tokenizer files"):
        sparsepo_data("check", path, "--tokenizer", tmp_path)


def test_pairs_with_eval_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "scored.jsonl", SCORED)
    out = tmp_path / "pairs.jsonl.gz"
    assert sparsepo_data("pairs", path, "--output", out, "--strategy", "all", "--cap", 2, "--eval_fraction", 0.2) == 0
    train, held = read_lines(out), read_lines(tmp_path / "pairs.eval.jsonl.gz")
    assert (len(train), len(held)) == (16, 4)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    assert set(train[0]) == {"prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"}
    printed = capsys.readouterr().out
    assert "30 rows, 10 prompts → 20 pairs" in printed
    assert "10 pairs above the cap left out" in printed
    assert "Wrote 16 pairs" in printed


def test_pairs_options(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"ask": row["prompt"], **row} for row in SCORED])
    out = tmp_path / "pairs.parquet"
    assert sparsepo_data("pairs", path, "--output", out, "--joiner", "\\n", "--no_shuffle", "--margin", "2") == 0
    from datasets import Dataset

    first = Dataset.from_parquet(str(out), cache_dir=str(tmp_path / "cache"))[0]
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("p0\n", "c", "a")
    with pytest.raises(DataError, match="no pairs could be made"):
        sparsepo_data("pairs", path, "--output", tmp_path / "none.jsonl", "--margin", "9")
    assert not (tmp_path / "none.jsonl").exists()


def test_pairs_from_votes(tmp_path: Path) -> None:
    rows = [{"history": "h", "human_ref_A": "A", "human_ref_B": "B", "labels": 0, "score_A": 1, "score_B": 4}]
    path = write_lines(tmp_path / "shp.jsonl", rows)
    assert sparsepo_data("pairs", path, "--output", tmp_path / "o.jsonl", "--min_ratio", 2, "--joiner", "none") == 0
    assert read_lines(tmp_path / "o.jsonl")[0]["chosen"] == "B"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "scored.jsonl"], r"scored\.jsonl exists; give --overwrite"),
        (["--output", "x.txt"], r"x\.txt: the name must end in \.jsonl"),
        (["--output", "no/x.jsonl"], "there is no folder no"),
        (["--output", "x.jsonl", "--strategy", "threshold"], "set margin > 0"),
        (["--output", "x.jsonl", "--eval_fraction", "2"], r"--eval_fraction 2\.0 must lie between 0 and 1"),
        (["--output", "x.jsonl", "--eval_output", "y.jsonl"], "--eval_output needs --eval_fraction"),
        (["--output", "x.jsonl", "--eval_fraction", "0.5", "--eval_output", "x.jsonl"], "are both x"),
        (["--output", "x.jsonl", "--rename", "a"], "--rename 'a': write OLD=NEW"),
    ],
)
def test_pairs_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "scored.jsonl", SCORED)
    with pytest.raises(ValueError, match=message):
        sparsepo_data("pairs", "scored.jsonl", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["scored.jsonl"]


def test_pairs_refuses_preference_data(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(DataError, match="holds preference pairs, plain text; expected scored or votes"):
        sparsepo_data("pairs", path, "--output", tmp_path / "out.jsonl")


def test_unknown_flags_and_abbreviations_are_errors(tmp_path: Path) -> None:
    for arguments in (["check", "f", "--tok", "x"], ["pairs", "f", "--out", "x"], ["check", "f", "--nonsense"], []):
        with pytest.raises(SystemExit) as caught:
            sparsepo_data(*arguments)
        assert caught.value.code == 2


def test_a_broken_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", PAIRS)

    def rows() -> Any:
        yield PAIRS[0]
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        write_rows(rows(), path, overwrite=True)
    assert read_lines(path) == PAIRS
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]
    with replacing(tmp_path / "y.txt") as temporary:
        temporary.write_text("done")
    assert (tmp_path / "y.txt").read_text() == "done"
    write_rows(PAIRS, tmp_path / "z.jsonl.gz")
    assert gzip.decompress((tmp_path / "z.jsonl.gz").read_bytes()).count(b"\n") == 8


def test_real_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared_file("imdb_scored.jsonl.gz")
    assert sparsepo_data("pairs", source, "--output", tmp_path / "p.jsonl", "--eval_fraction", "0.1") == 0
    held = tmp_path / "p.eval.jsonl"
    assert sparsepo_data("check", tmp_path / "p.jsonl", "--eval", held, "--strict") == 0
    assert len(read_lines(held)) == 20
    assert "181 rows, 181 kept, 0 dropped" in " ".join(capsys.readouterr().out.split())


def test_the_examples_of_the_page_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- (?:file|result): (\S+) -->\n```json\n(.*?)```", page, re.DOTALL))
    commands = re.findall(r"^    \$ sparsepo data (.*)\n((?:    .*\n)*)", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for name in ("hh.jsonl", "scored.jsonl", "pairs.jsonl"):
        Path(name).write_text(blocks[name], encoding="utf-8")
    assert len(commands) == 3
    for command, output in commands:
        assert sparsepo_data(*command.split()) == 0
        shown = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
        assert shown == [line[4:].rstrip() for line in output.splitlines()]
    for name in ("split.jsonl", "made.jsonl"):
        assert Path(name).read_text(encoding="utf-8") == blocks[name]
