"""``sparsepo summaries``: files, models, resuming, what is written, wrong usage."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli import summaries
from sparsepo.cli.summary_files import PICKS, split_source
from sparsepo.evaluation.summaries.metrics import GROUPS
from sparsepo.evaluation.summaries.sampling import TEMPERATURES, Sampling
from tests.cli.conftest import Outcome, write_rows
from tests.evaluation.encoders import save_encoder, save_nli

Call = Callable[..., Outcome]
PROMPTS = ["the film was", "the story was", "a good actor with the scene"]


@pytest.fixture
def scored_file(tmp_path: Path) -> Path:
    texts = ["good and bright", "bad", "the film was fine"]
    rows = [{"prompt": p, "text": t, "reward": r} for p in PROMPTS for t, r in zip(texts, (3, 1, 2), strict=True)]
    return write_rows(tmp_path / "scored.jsonl", rows)


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": p, "reference": "good film"} for p in PROMPTS])


def content(folder: Path) -> Any:
    return json.loads((folder / "summaries.json").read_text(encoding="utf-8"))


def test_picks_of_a_scored_file_side_by_side(sparsepo: Call, tmp_path: Path, scored_file: Path) -> None:
    out = tmp_path / "out"
    result = sparsepo(
        "summaries", f"top={scored_file}@best", f"low={scored_file}@worst",
        "--references", scored_file, "--output", out,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "low − top" in result.out
    assert "top: 3 of 3 summaries are their own reference" in result.out
    found = {own["name"]: own["metrics"] for own in content(out)["sets"]}
    assert found["top"]["rougeL"]["value"] == pytest.approx(100)
    assert found["low"]["rougeL"]["value"] == 0
    assert found["low"]["words"]["value"] == 1
    assert found["top"]["self_bleu"]["value"] is None  # one summary a prompt
    with open(out / "summaries.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "rouge1" and row["source"] == "top"]
    assert float(rows[0]["value"]) == pytest.approx(100)
    assert {path.suffix for path in (out / "plots").iterdir()} == {".png", ".svg"}
    page = (out / "summaries.html").read_text(encoding="utf-8")
    assert "ROUGE-L" in page
    assert "good and bright" in page


def test_all_metrics_of_a_model_and_a_file(
    sparsepo: Call, tmp_path: Path, model_folder: Path, prompts_file: Path
) -> None:
    rows = [
        {"prompt": p, "summary": s, "temperature": 0.5} for p in PROMPTS for s in ("good <b>film</b>", "", "漢字 é")
    ]
    ready = write_rows(tmp_path / "ready.jsonl", rows)
    encoder, nli, out = save_encoder(tmp_path / "encoder"), save_nli(tmp_path / "nli"), tmp_path / "out"
    arguments = [
        "summaries", f"m={model_folder}", ready, "--prompts", prompts_file, "--temperatures", 0, 0.5, 1,
        "--samples", 2, "--max_new_tokens", 4, "--bert_model", encoder, "--bert_layers", 2, "--nli_model", nli,
        "--output", out, "--use_cpu",
    ]  # fmt: skip
    first = sparsepo(*arguments)
    assert first.status == 0, first.err
    sets = {(own["name"], own["temperature"]): own["metrics"] for own in content(out)["sets"]}
    assert set(sets) == {("m", 0.0), ("m", 0.5), ("m", 1.0), ("ready", 0.5)}
    assert sets["m", 0.0]["self_bleu"]["value"] == pytest.approx(100)  # greedy samples are one text
    assert sets["ready", 0.5]["empty"]["value"] == pytest.approx(1 / 3)
    for name in ("bertscore", "faithfulness", "self_entailment", "edna", "rouge1", "distinct2"):
        assert sets["ready", 0.5][name]["count"] == 3, name
    assert (out / "plots" / "trade_off.svg").is_file()
    assert [own["one"] for own in content(out)["differences"]] == ["ready T=0.5"]
    samples = sorted((out / "samples").glob("m-T1-*/samples-*.json"))
    rows_of_a_prompt = json.loads(samples[0].read_text(encoding="utf-8"))[0]
    assert [row["sample"] for row in rows_of_a_prompt] == [0, 1]
    assert {row["seed"] for row in rows_of_a_prompt} == {0}

    written = content(out)
    samples[0].unlink()  # as if the first run had been interrupted
    kinds = ("samples", "scores")
    before = {path: path.stat().st_mtime_ns for kind in kinds for path in (out / kind).rglob("*.json")}
    assert sparsepo(*arguments).status == 0
    assert content(out) == written
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing that was there was made again
    samples[0].write_text("[", encoding="utf-8")
    damaged = sparsepo(*arguments)
    assert damaged.status == 1
    assert "is damaged" in damaged.err


def test_long_prompts_are_cut_and_said(sparsepo: Call, tmp_path: Path, model_folder: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "the film was " * 100}, {"prompt": "the film"}])
    result = sparsepo(
        "summaries", model_folder, "--prompts", prompts, "--temperatures", 0, "--samples", 1, "--max_new_tokens", 8
    )
    assert result.status == 0, result.err
    assert "1 of 2 prompts are cut to their last 120 tokens" in result.out
    assert "ROUGE" not in result.out  # there are no references


def test_an_nli_model_that_does_not_say_entailment(sparsepo: Call, tmp_path: Path, scored_file: Path) -> None:
    nli = save_nli(tmp_path / "nli", {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})
    result = sparsepo("summaries", scored_file, "--nli_model", nli)
    assert result.status == 1
    assert "exactly one must be called 'entailment'" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE", "--samples", "2"], "--samples has no effect: every source is a file"),
        (["MODEL"], "Give --prompts FILE"),
        (["FILE@bets"], "@bets is unknown; choose from @all, @best"),
        (["FILE", "FILE"], "Two sources are called scored"),
        (["gone.jsonl"], "there is no file gone.jsonl"),
        (["./gone"], "no such folder"),
        (["FILE", "--metrics", "rouge"], "ROUGE and BERTScore need references"),
        (["FILE", "--metrics", "rouge", "--nli_model", "x"], "--nli_model has no effect"),
        (["FILE", "--bert_model", "some/model"], "give bert_layers"),
        (["FILE", "--metrics", "bleu"], "'bleu' is not one of rouge"),
        (["FILE", "--limit", "0"], "--limit 0: must be at least 1"),
        (["FILE", "--output", "FILE"], "is a file; give a folder"),
        (["FILE", "--refrences", "FILE"], "did you mean --references"),
        (["MODEL", "--prompts", "FILE", "--top_p", "0"], "--top_p 0.0: must be above 0"),
        (["MODEL", "--prompts", "FILE", "--temperatures", "1", "1"], "and none twice"),
        (["MODEL", "--prompts", "FILE", "--template", "TL;DR:"], "must hold {prompt}"),
        (["MODEL", "--prompts", "FILE", "--max_new_tokens", "500"], "has 128 positions in all"),
    ],
    ids=str,
)
def test_wrong_usage_is_named(
    sparsepo: Call, model_folder: Path, scored_file: Path, arguments: list[str], message: str
) -> None:
    filled = [item.replace("FILE", str(scored_file)).replace("MODEL", str(model_folder)) for item in arguments]
    result = sparsepo("summaries", *filled)
    assert result.status != 0
    assert message in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "row 1: 'prompt' must be a text or a list of messages"),
        ({"prompt": "p", "text": 3}, "row 1: 'text' must be a text"),
        ({"prompt": "p", "text": "x", "reward": "much"}, "row 1: 'reward' must be a number"),
        ({"prompt": "p", "text": "x", "reference": " "}, "row 1: 'reference' must be a text that is not empty"),
        ({"prompt": "p"}, "no row has a summary"),
        ({"prompt": "p", "text": "x", "document": 1}, "row 1: 'document' must be a text"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_used_are_named(sparsepo: Call, tmp_path: Path, row: Any, message: str) -> None:
    result = sparsepo("summaries", write_rows(tmp_path / "bad.jsonl", [row]))
    assert result.status == 1
    assert message in " ".join(result.err.split())


def test_conversations_have_their_last_user_message_as_document(tmp_path: Path) -> None:
    from sparsepo.cli.summary_files import read_prompts

    messages = [
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "new"},
    ]
    (rows,) = read_prompts(str(write_rows(tmp_path / "c.jsonl", [{"prompt": messages, "summary": "s"}]))).values()
    assert rows.document == "new"
    assert rows.prompt == messages


def test_sources_are_taken_apart() -> None:
    assert split_source("a=b/c.jsonl.gz@best") == ("a", "b/c.jsonl.gz", "best")
    assert split_source("b/c.jsonl") == ("c", "b/c.jsonl", "all")
    assert split_source("x=model@v2") == ("x", "model@v2", "all")
    assert split_source("a/b=c") == ("b=c", "a/b=c", "all")


def test_names_that_the_command_repeats() -> None:
    assert summaries.METRICS == GROUPS
    assert tuple(summaries.SAMPLING["temperatures"]) == TEMPERATURES  # type: ignore[arg-type]
    defaults = Sampling()
    for name in ("samples", "top_p", "max_new_tokens", "seed"):
        assert summaries.SAMPLING[name] == getattr(defaults, name)
    assert len(PICKS) == 4


def scored(name: str, temperature: float | None) -> Any:
    from sparsepo.evaluation.summaries import Judges, SummaryItem, SummarySet, score_set

    items = tuple(SummaryItem(p, p, (f"{name} film {temperature}",), ("the film",)) for p in PROMPTS)
    return score_set(SummarySet(name, items, temperature), ["rouge"], Judges())


def test_tables_and_differences_stand_at_equal_temperatures() -> None:
    from sparsepo.inspection.summarisation_page import tables

    file, swept, other = (
        scored("file", None),
        [scored("a", t) for t in (0.0, 1.0)],
        [scored("b", t) for t in (0.0, 1.0)],
    )
    assert [header[1:] for header, _ in tables([file, *swept]).values()] == [["file", "a T=0", "a T=1"]]
    both = tables([*swept, *other, file])
    assert {title: header[1:] for title, (header, _) in both.items()} == {
        f"summaries at temperature {t}": ["a", "b", "file"] for t in (0, 1)
    }
    found = [(own["one"], own["other"]) for own in summaries._differences([*swept, *other, file])]
    assert found == [("b T=0", "a T=0"), ("b T=1", "a T=1"), ("file", "a T=0"), ("file", "a T=1")]
