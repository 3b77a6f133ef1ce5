"""``sparsepo judge``, against a local server and with small reward models."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsepo.cli.base import CliError
from sparsepo.cli.judge import PROGRAMS, REWARD_KINDS, reward_spec
from sparsepo.evaluation.judge import Endpoint, request_key
from tests.cli.conftest import Outcome, write_rows
from tests.evaluation.judge.server import fails, judge_server, says
from tests.support import tiny_tokenizer

Call = Callable[..., Outcome]
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.setenv("SPARSEPO_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Six answers of each of two systems; the first one's are better for two prompts of three."""
    own = [{"prompt": f"question {i}", "response": f"{'good' if i % 3 else 'poor'} answer {i}"} for i in range(6)]
    other = [{"prompt": f"question {i}", "text": f"fair reply {i}", "reward": 0.1} for i in reversed(range(6))]
    return write_rows(tmp_path / "ours.jsonl", own), write_rows(tmp_path / "theirs.jsonl", other)


def by_quality(text: str) -> str:
    """Prefers good to fair and fair to poor."""
    grades = {"good": 2, "fair": 1, "poor": 0}
    place = {word: text.find(f"{word} ") for word in grades if f"{word} answer" in text or f"{word} reply" in text}
    first, second = sorted(place, key=lambda word: place[word])
    return f"Comparison: they differ.\nPreferred: {'A' if grades[first] > grades[second] else 'B'}"


def endpoint_flags(url: str) -> list[str]:
    return ["--endpoint", url, "--judge_model", "judge-1", "--template", "tldr"]


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    return content


def test_a_win_rate(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    with judge_server(fails(429, retry_after="0.01"), verdict=by_quality) as server:
        flags = [*files, *endpoint_flags(server.url), "--output", out, "--price_in", 1, "--price_out", 10]
        result = sparsepo("judge", *flags)
        assert result.status == 0, result.err
        assert len(server.bodies) == 13  # twelve, and one again
        assert "win rate of ours" in result.out
        assert "key from SPARSEPO_API_KEY" in result.out
        report = report_of(out)
        assert report["win_rate"]["value"] == pytest.approx(4 / 6)
        assert report["counts"] == {"wins": 4, "ties": 0, "losses": 2}
        assert report["complete"]
        assert report["asking"] == {
            "requests": 12, "adopted": 0, "cached": 0, "answered": 12, "failed": 0, "retried": {"HTTP 429: it failed": 1},
        }  # fmt: skip
        assert report["spent"]["cost"] == pytest.approx(12 * 200e-6)
        rows = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
        assert [row["score"] for row in rows] == [0, 1, 1, 0, 1, 1]
        assert {path.name for path in out.iterdir()} >= {"judge.html", "plots", "account.sqlite"}
        page = (out / "judge.html").read_text()
        assert "shown as data and models wrote them" in page
        assert "good answer 1" in page
        # the same again asks nothing, and gives the same
        assert sparsepo("judge", *flags).status == 0
        assert len(server.bodies) == 13
        again = report_of(out)
        assert again["asking"]["cached"] == 12
        assert {**report, "asking": 0} == {**again, "asking": 0}
        # the same server at another address is the same judge, where that is said
        with judge_server() as elsewhere:
            moved = [*endpoint_flags(elsewhere.url), "--endpoint_name", server.url]
            assert sparsepo("judge", *files, *moved, "--output", out).status == 0
            assert elsewhere.bodies == []
    for folder in (out, tmp_path / "user_cache"):
        for path in folder.rglob("*"):
            assert path.is_dir() or KEY.encode() not in path.read_bytes()
    assert KEY not in result.out + result.err


def test_a_dry_run_asks_and_writes_nothing(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    with judge_server() as server:
        flags = [*files, *endpoint_flags(server.url), "--dry_run", "--price_in", 1, "--price_out", 10]
        result = sparsepo("judge", *flags, "--max_tokens", 100)
        assert result.status == 0
        assert server.bodies == []
    assert "to ask" in result.out
    assert "1,200 answered" in result.out  # at most: twelve answers of 100 tokens
    assert "cost, about" in result.out
    assert {path.name for path in tmp_path.iterdir()} == {"ours.jsonl", "theirs.jsonl"}


def test_a_cap_stops_and_a_higher_one_goes_on(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    with judge_server(verdict=by_quality) as server:
        flags = [*files, *endpoint_flags(server.url), "--output", out, "--parallel", 1]
        result = sparsepo("judge", *flags, "--max_requests", 5)
        assert result.status == 1
        assert "--max_requests 5" in result.out
        assert len(server.bodies) == 5
        report = report_of(out)
        assert not report["complete"]
        assert (report["judged"], report["unasked"], report["excluded"]) == (2, 4, 0)
        assert "Not complete" in (out / "judge.html").read_text()
        assert sparsepo("judge", *flags, "--max_requests", 5).status == 1
        assert len(server.bodies) == 5
        assert sparsepo("judge", *flags, "--max_requests", 12).status == 0
        assert len(server.bodies) == 12
        assert report_of(out)["complete"]


def test_malformed_answers_are_reported(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    odd = [says("Both are poor."), says(None), says(None, message={"refusal": "no"}), says("Preferred: A and B")]
    with judge_server(*odd, verdict=by_quality) as server:
        result = sparsepo("judge", *files, *endpoint_flags(server.url), "--output", tmp_path / "out", "--parallel", 1)
    assert result.status == 0
    report = report_of(tmp_path / "out")
    assert report["excluded"] == 2
    assert report["problems"] == {
        "no verdict in the form asked for": 1,
        "empty answer": 1,
        "refused to answer": 1,
        "verdict is none of the choices": 1,
    }
    assert "excluded for that" in result.out


def test_a_wrong_key_stops_at_once(
    sparsepo: Call, tmp_path: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEPO_DEBUG", "1")
    with judge_server(*[fails(401, f"Incorrect API key provided: {KEY}")] * 9) as server:
        result = sparsepo("judge", *files, *endpoint_flags(server.url), "--output", tmp_path / "out", "--parallel", 1)
        assert len(server.bodies) == 1
    assert result.status == 1
    assert "HTTP 401: Incorrect API key provided: [key]" in result.err
    assert "set SPARSEPO_API_KEY" in result.err
    assert "0 of 12 answers are kept" in result.err
    assert KEY not in result.out + result.err


def test_another_judging_is_not_overwritten(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    with judge_server(verdict=by_quality) as server:
        flags = [*files, *endpoint_flags(server.url), "--output", tmp_path / "out"]
        assert sparsepo("judge", *flags, "--limit", 1).status == 0
        assert sparsepo("judge", *flags).status == 0  # more of the same
        result = sparsepo("judge", *flags, "--request", '{"seed": 1}')
        assert result.status == 1
        assert "is another judging; give --overwrite" in result.err
        assert len(server.bodies) == 12
        assert sparsepo("judge", *flags, "--request", '{"seed": 1}', "--overwrite").status == 0
        assert server.bodies[-1]["seed"] == 1


def test_another_endpoint_is_asked_itself(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    with judge_server(verdict=by_quality) as one, judge_server(verdict=by_quality) as two:
        first = [*files, *endpoint_flags(one.url), "--output", out]
        other = [*files, *endpoint_flags(two.url)]
        assert sparsepo("judge", *first).status == 0
        refused = sparsepo("judge", *other, "--output", out)
        assert refused.status == 1
        assert f"by another endpoint, {one.url}" in refused.err
        assert two.bodies == []
        assert sparsepo("judge", *other, "--output", tmp_path / "other").status == 0
        assert len(two.bodies) == 12
        moved = sparsepo("judge", *other, "--output", out, "--endpoint_name", one.url)  # the same server, elsewhere now
        assert moved.status == 0
        assert (len(one.bodies), len(two.bodies)) == (12, 12)


def test_answers_of_an_earlier_version_are_used_and_told(
    sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    cache, out = tmp_path / "answers.sqlite", tmp_path / "out"
    with judge_server(verdict=by_quality) as server:
        flags = [*files, *endpoint_flags(server.url), "--cache", cache]
        assert sparsepo("judge", *flags, "--output", out).status == 0
        older = {request_key(body): request_key(body, Endpoint(server.url).source) for body in server.bodies}
        with sqlite3.connect(cache) as connection:
            for old, new in older.items():
                connection.execute("UPDATE answers SET key = ? WHERE key = ?", (old, new))
        content = report_of(out)
        del content["judge"]["source"]
        (out / "judge.json").write_text(json.dumps(content))
        tried = sparsepo("judge", *flags, "--dry_run")
        result = sparsepo("judge", *flags, "--output", out)
        for one in (tried, result):
            assert one.status == 0, one.err
            assert "12 answers were kept by a version that did not write down the endpoint" in one.out
        assert report_of(out)["asking"]["adopted"] == 12
        assert "did not write down" not in sparsepo("judge", *flags, "--output", out).out
        assert len(server.bodies) == 12


def test_transcripts_with_both_answers(sparsepo: Call, tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant:"
    rows = [
        {"chosen": f"{start} good answer", "rejected": f"{start} poor answer"},
        {"chosen": start, "rejected": "\n\nHuman: a\n\nAssistant: b"},
    ]
    data = write_rows(tmp_path / "hh.jsonl", rows)
    with judge_server(verdict=by_quality) as server:
        result = sparsepo("judge", data, *endpoint_flags(server.url), "--output", tmp_path / "out")
        assert result.status == 0, result.err
        assert "Human: hi" in server.bodies[0]["messages"][0]["content"]
    assert "1 transcripts cannot be split and are left out" in result.out
    assert report_of(tmp_path / "out")["win_rate"]["value"] == 1.0


def test_offensive_words_are_announced_and_masked(sparsepo: Call, tmp_path: Path) -> None:
    rows = [{"prompt": "a murder in town", "response_a": "good answer", "response_b": "poor answer"}]
    data = write_rows(tmp_path / "both.jsonl", rows)
    with judge_server(verdict=by_quality) as server:
        flags = ["judge", data, *endpoint_flags(server.url), "--output", tmp_path / "out"]
        assert sparsepo(*flags).status == 0
        page = (tmp_path / "out" / "judge.html").read_text()
        assert "Content notice" in page
        assert "murder in" in page
        assert sparsepo(*flags, "--content_filter").status == 0
        assert "murder in" not in (tmp_path / "out" / "judge.html").read_text()
        assert "murder in" in server.bodies[0]["messages"][0]["content"]  # the judge reads what was written


def test_mismatched_prompts_are_named(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    more = write_rows(
        tmp_path / "more.jsonl", [{"prompt": "question 1", "text": "x"}, {"prompt": "another", "text": "y"}]
    )
    with judge_server() as server:
        result = sparsepo("judge", files[0], more, *endpoint_flags(server.url), "--dry_run")
    assert '1 of the answers of more have no partner and are left out; prompts: "another"' in result.out
    assert "5 of the answers of ours" in result.out


# ---- reward models ----


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of one number."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    config = GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=1, pad_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def word_files(folder: Path) -> tuple[Path, Path]:
    own = [{"prompt": "the film was", "response": f"{word} and good"} for word in ("bright", "dull", "warm", "cold")]
    other = [{"prompt": "the film was", "response": f"{word} story"} for word in ("bright", "dull", "warm", "cold")]
    return write_rows(folder / "a.jsonl", own), write_rows(folder / "b.jsonl", other)


def test_a_reward_model_judges(sparsepo: Call, tmp_path: Path, reward_model: Path) -> None:
    own, other = word_files(tmp_path)
    result = sparsepo("judge", own, other, "--reward_model", reward_model, "--output", tmp_path / "out")
    assert result.status == 0, result.err
    report = report_of(tmp_path / "out")
    from sparsepo.evaluation.rewards import get_reward

    reward = get_reward(f"regression:{reward_model}")
    sides = [[json.loads(line) for line in path.read_text().splitlines()] for path in (own, other)]
    a, b = (reward([row["prompt"] for row in side], [row["response"] for row in side]) for side in sides)
    wins = [float(x > y) for x, y in zip(a, b, strict=True)]
    assert report["win_rate"]["value"] == pytest.approx(sum(wins) / 4)
    assert report["margin"]["value"] == pytest.approx(sum(a) / 4 - sum(b) / 4, abs=1e-6)
    assert (report["prompts"], report["order"], report["win_rate"]["prompts"]) == (1, None, 1)
    assert "mean difference of the rewards" in result.out
    wide = sparsepo("judge", own, other, "--reward_model", f"regression:{reward_model}", "--tie_margin", 1e6,
                    "--output", tmp_path / "wide")  # fmt: skip
    assert wide.status == 0
    assert report_of(tmp_path / "wide")["counts"] == {"wins": 0, "ties": 4, "losses": 0}


# ---- flags ----

URL = ["--endpoint", "http://h/v1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give one judge: --endpoint URL with --judge_model NAME, or --reward_model"),
        ([*URL, "--reward_model", "x"], "Give one judge"),
        (URL, "--output FOLDER says where"),
        ([*URL, "--dry_run"], "--endpoint needs --judge_model NAME"),
        ([*URL, "--dry_run", "--judge_model", "m"], "needs --template, a YAML file or one of\n  alpaca"),
        ([*URL, "--dry_run", "--judge_model", "m", "--template", "tlrd"], "neither a file nor one of"),
        (["--endpoint", "h/v1", "--dry_run", "--judge_model", "m", "--template", "tldr"], "give the address"),
        ([*URL, "--dry_run", "--tie_margin", "1"], "--tie_margin has no effect without --reward_model"),
        (["--reward_model", "x", "--output", "o", "--max_cost", "1"], "--max_cost has no effect without --endpoint"),
        (["--reward_model", "x", "--dry_run"], "--dry_run has no effect with --reward_model"),
        (["--reward_model", "./no/such", "--output", "o"], "no such folder"),
        (["--reward_model", "lexicon:a.zip", "--output", "o", "--reward_max_length", "9"], "no effect with lexicon"),
        (["GOOD", "--max_cost", "1"], "--max_cost needs the prices of a million tokens: --price_in and --price_out"),
        (["GOOD", "--price_in", "1"], "Give both --price_in and --price_out"),
        (["GOOD", "--request", "{seed: 1}"], "is not valid JSON"),
        (["GOOD", "--request", "[1]"], "must be a JSON object"),
        (["GOOD", "--request", '{"n": 2}'], "n cannot be set here"),
        (["GOOD", "--parallel", "0"], "parallel=0 must be at least 1"),
        (["GOOD", "--timeout", "0"], "timeout=0 must be above zero"),
        (["GOOD", "--limit", "0"], "--limit 0: must be at least 1"),
        (["GOOD", "--max_cost", "-1"], "--max_cost -1.0: must be a number of at least zero"),
        (["GOOD", "--names", "a", "a"], "the two names must differ"),
    ],
)
def test_wrong_flags_fail_with_the_mend(
    sparsepo: Call, files: tuple[Path, Path], flags: list[str], message: str
) -> None:
    good = [*endpoint_flags("http://h/v1"), "--dry_run"]
    result = sparsepo("judge", *files, *(good + flags[1:] if flags[:1] == ["GOOD"] else flags))
    assert result.status == 1
    assert message in result.err


def test_wrong_files(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [])
    for given, message in {
        tmp_path / "none.jsonl": "there is no such file",
        tmp_path: "is a folder; give a file of answers",
        empty: "holds no rows",
    }.items():
        result = sparsepo("judge", files[0], given, *endpoint_flags("http://h/v1"), "--dry_run")
        assert result.status == 1
        assert message in result.err


def test_reward_kinds_are_those_of_the_library() -> None:
    from sparsepo.evaluation.rewards import REWARDS

    assert {*REWARD_KINDS, PROGRAMS} == set(REWARDS)
    with pytest.raises(CliError, match="sparsepo code"):
        reward_spec("code-tests:mbpp:FILE")


def test_a_cache_of_ones_own(sparsepo: Call, tmp_path: Path, files: tuple[Path, Path]) -> None:
    cache = tmp_path / "answers.sqlite"
    with judge_server(verdict=by_quality) as server:
        flags = [*files, *endpoint_flags(server.url), "--cache", cache]
        assert sparsepo("judge", *flags, "--output", tmp_path / "one").status == 0
        assert sparsepo("judge", *flags, "--output", tmp_path / "two").status == 0
        assert len(server.bodies) == 12
    with sqlite3.connect(cache) as connection:
        assert connection.execute("SELECT COUNT(*) FROM answers").fetchone() == (12,)
    assert not (tmp_path / "user_cache" / "sparsepo").exists()
    assert os.environ["SPARSEPO_API_KEY"] == KEY
