"""Scored samples in a file: resumed without repetitions, the same whatever the parts; and from a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparsepo.data import DataError, load_preference_data, pairs_from_scored
from sparsepo.evaluation.rewards import get_reward
from sparsepo.evaluation.sampling import LocalSampler, Sample, SamplingSettings, sample_to_file
from sparsepo.evaluation.sampling_server import ServerError, ServerSampler

from .conftest import sharpened
from .fake_server import completions, serving

PROMPTS = ["the film was", "i watched", "a dull plot", "the old house", "on monday"]
SETTINGS = SamplingSettings(samples=3, max_new_tokens=5, seed=4)


def local(tokenizer: Any, batch_size: int = 64, **changes: Any) -> LocalSampler:
    settings = SamplingSettings(**{**SETTINGS.__dict__, **changes})
    return LocalSampler(sharpened(2), tokenizer, "tiny", settings, batch_size)


class Stopping(LocalSampler):
    """Interrupted after some prompts."""

    def sample(self, numbers: Sequence[int], prompts: Sequence[Any]) -> Iterator[tuple[int, list[Sample]]]:
        for place, samples in super().sample(numbers, prompts):
            if numbers[place] == 3:
                raise KeyboardInterrupt
            yield place, samples


def test_rows_hold_everything_and_make_pairs(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "scored.jsonl"
    rows = sample_to_file(local(tokenizer), PROMPTS, get_reward("playground"), file)
    assert rows == [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["prompt_number"], row["sample"]) for row in rows] == [(p, s) for p in range(5) for s in range(3)]
    first = rows[0]
    assert first["seed"] == 4
    assert first["settings"] == {
        "model": "tiny",
        "samples": 3,
        "max_new_tokens": 5,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_prompt_length": None,
    }
    assert first["reward_name"] == "playground"
    assert first["reward"] == get_reward("playground")([""], [first["text"]])[0]
    assert 1 <= first["tokens"] <= 5
    assert isinstance(first["finished"], bool)
    assert not file.with_name("scored.jsonl.partial").exists()
    pairs, report = pairs_from_scored(load_preference_data(file, kinds=("scored",)))
    assert report.rows == 15
    assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_an_interrupted_run_goes_on_to_the_same_rows(tokenizer: Any, tmp_path: Path, suffix: str) -> None:
    reward = get_reward("playground")
    whole = sample_to_file(local(tokenizer), PROMPTS, reward, tmp_path / "whole.jsonl")
    file = tmp_path / f"parts{suffix}"
    stopped = Stopping(sharpened(2), tokenizer, "tiny", SETTINGS, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        sample_to_file(stopped, PROMPTS, reward, file)
    partial = file.with_name(f"{file.name}.partial")
    assert not file.exists()
    assert len(partial.read_text().splitlines()) == 1 + 9
    with partial.open("a") as opened:  # what a cut-off write leaves: half a prompt and half a line
        opened.write(json.dumps({**whole[9]}) + "\n" + json.dumps(whole[10])[:20])
    seen: list[tuple[int, int]] = []
    rows = sample_to_file(local(tokenizer, 2), PROMPTS, reward, file, progress=lambda d, t: seen.append((d, t)))
    assert rows == whole
    assert seen == [(4, 5), (5, 5)]
    assert not partial.exists()
    assert len(load_preference_data(file, kinds=("scored",))) == 15
    with pytest.raises(DataError, match="exists; give --overwrite"):
        sample_to_file(local(tokenizer), PROMPTS, reward, file)


def test_an_unfinished_file_of_other_settings_is_not_gone_on_with(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "scored.jsonl"
    stopped = Stopping(sharpened(2), tokenizer, "tiny", SETTINGS, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        sample_to_file(stopped, PROMPTS, None, file)
    for sampler, prompts, name in (
        (local(tokenizer, temperature=0.5), PROMPTS, "temperature=1.0, now it is 0.5"),
        (local(tokenizer, seed=5), PROMPTS, "seed=4, now it is 5"),
        (local(tokenizer), [*PROMPTS, "the"], "prompts="),
    ):
        with pytest.raises(DataError, match=f"unfinished samples with {name}"):
            sample_to_file(sampler, prompts, None, file)
    with pytest.raises(DataError, match="reward=None, now it is 'playground'"):
        sample_to_file(local(tokenizer), PROMPTS, get_reward("playground"), file)
    assert len(sample_to_file(local(tokenizer, seed=5), PROMPTS, None, file, overwrite=True)) == 15
    file.unlink()
    file.with_name("scored.jsonl.partial").write_text("something else\n")
    with pytest.raises(DataError, match="is no unfinished sampling"):
        sample_to_file(local(tokenizer), PROMPTS, None, file)


def test_prompts_without_room_are_refused_before_any_work(tokenizer: Any, tmp_path: Path) -> None:
    long = ["the " * 126 + "film"]
    with pytest.raises(ValueError, match=r"Prompt 0 has 127 tokens: .* max_prompt_length=123"):
        sample_to_file(local(tokenizer), long, None, tmp_path / "a.jsonl")
    (row, *_) = sample_to_file(local(tokenizer, max_prompt_length=3), long, None, tmp_path / "a.jsonl")
    short = sample_to_file(local(tokenizer), ["the the film"], None, tmp_path / "b.jsonl")
    assert row["text"] == short[0]["text"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"samples": 0}, "samples=0"), ({"temperature": -1.0}, "temperature=-1.0"), ({"top_p": 0.0}, "top_p=0.0")],
)
def test_bad_settings(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplingSettings(**changes)


# ---- servers ----


def served(url: str, **changes: Any) -> ServerSampler:
    return ServerSampler(url, "served", SETTINGS, **{"retries": 2, "timeout": 5, "parallel": 2, **changes})


def test_texts_are_continued_and_conversations_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEPO_API_KEY", "secret-key")
    chat = [{"role": "user", "content": "hello"}]
    with serving(completions) as (url, seen):
        rows = sample_to_file(served(url), ["the film", chat], None, tmp_path / "a.jsonl")
        again = sample_to_file(served(url), ["the film", chat], None, tmp_path / "b.jsonl")
    assert rows == again
    assert {request["path"] for request in seen} == {"/v1/completions", "/v1/chat/completions"}
    assert {request["key"] for request in seen} == {"Bearer secret-key"}
    assert {(r["model"], r["n"], r["max_tokens"], r["temperature"]) for r in seen} == {("served", 3, 5, 1.0)}
    assert rows[0]["text"] == f" said to the film with {rows[0]['seed']}/0"
    assert rows[3]["text"].startswith(" said to hello with ")
    assert rows[0]["seed"] != rows[3]["seed"]
    assert [row["finished"] for row in rows[:3]] == [True, False, True]
    assert "secret-key" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_servers_that_give_fewer_or_more_completions_than_asked_for(tmp_path: Path) -> None:
    def one(*request: Any) -> tuple[int, Any]:
        status, value = completions(*request)
        return status, {**value, "choices": value["choices"][:1]}

    def many(path: str, body: dict[str, Any], *rest: Any) -> tuple[int, Any]:
        return completions(path, {**body, "n": 5}, *rest)

    for answer, requests in ((one, 3), (many, 1)):
        with serving(answer) as (url, seen):
            rows = sample_to_file(served(url), ["the film"], None, tmp_path / f"{answer.__name__}.jsonl")
            assert len(rows) == 3
            assert len({row["text"] for row in rows}) == 3
            assert len(seen) == requests


def test_trouble_that_passes_is_waited_for_and_other_trouble_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *a, **k: 0.01)

    def at_first(status: int) -> Callable[..., tuple[int, Any]]:
        return lambda p, b, h, number: (status, {"error": "busy"}) if number <= 2 else completions(p, b, h, number)

    for status in (429, 500, 503):
        with serving(at_first(status)) as (url, seen):
            assert len(sample_to_file(served(url), ["a"], None, tmp_path / f"{status}.jsonl")) == 3
            assert len(seen) == 3
    for answer, said in (
        (lambda *_: (500, {"error": "broken"}), "InternalServerError"),
        (lambda *_: (404, {"error": "no such model"}), "no such model"),
        (lambda *_: (401, {"error": "bad key secret-key"}), "refuses the key: set SPARSEPO_API_KEY or OPENAI_API_KEY"),
        (lambda *_: (200, b'{"choices": [{"tex'), "JSON"),
        (lambda *_: (200, {"choices": []}), "answered without completions"),
        (lambda *_: (200, {"choices": [{"index": 0, "finish_reason": "stop"}]}), "without text"),
    ):
        with serving(answer) as (url, _), pytest.raises(ServerError, match=said) as caught:
            sample_to_file(served(url), ["a"], None, tmp_path / "never.jsonl", overwrite=True)
        assert "secret-key" not in str(caught.value)
    with pytest.raises(ServerError, match="APIConnectionError"):
        sample_to_file(served("http://127.0.0.1:9/v1"), ["a"], None, tmp_path / "never.jsonl", overwrite=True)


def test_what_was_done_before_a_server_broke_is_kept(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(6)]

    def breaks(path: str, body: dict[str, Any], headers: dict[str, str], number: int) -> tuple[int, Any]:
        return completions(path, body, headers, number) if number <= 3 else (400, {"error": "enough"})

    with serving(breaks) as (url, _), pytest.raises(ServerError, match="enough"):
        sample_to_file(served(url, parallel=1, retries=0), prompts, None, tmp_path / "a.jsonl")
    with serving(completions) as (url, seen):
        rows = sample_to_file(served(url), prompts, None, tmp_path / "a.jsonl")
        assert len(seen) == 3  # nothing is asked for twice
    assert [row["prompt_number"] for row in rows] == [number for number in range(6) for _ in range(3)]


@pytest.mark.parametrize(
    ("url", "changes", "said"),
    [
        ("localhost:8000", {}, "is no URL"),
        ("http://localhost:8000", {"api": "text"}, "api='text' is unknown"),
        ("http://localhost:8000", {"parallel": 0}, "parallel=0 must be above 0"),
    ],
)
def test_bad_server_settings(url: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        served(url, **changes)
    with pytest.raises(ValueError, match="which the completions API does not take"):
        served("http://localhost:8000", api="completions").check([[{"role": "user", "content": "a"}]])


def test_lines_end_at_line_feeds_only():
    """Texts hold separators that ``str.splitlines`` breaks at, and JSON leaves them as they are."""
    from sparsepo.evaluation.json_lines import lines_of

    texts = ["a\x85b\u2028c\u2029d\x0be\x1cf", "g"]
    written = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    assert [json.loads(line)["text"] for line in lines_of(written)] == texts
