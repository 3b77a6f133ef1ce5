from __future__ import annotations

import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.data import DataError, PairSettings, joined, pairs_from_scored, pairs_from_votes, split_by_prompt
from tests.data.data_support import read_lines, shared_file


def scored(*triples: tuple) -> list[dict]:
    return [{"prompt": prompt, "text": text, "reward": reward} for prompt, text, reward in triples]


ROWS = scored(("p", "a", 1.0), ("q", "x", 0.0), ("p", "b", 3.0), ("p", "c", 2.0), ("q", "y", 5))


def brief(pairs: list[dict]) -> set[tuple]:
    return {(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs}


def test_best_worst_groups_rows_that_stand_apart() -> None:
    pairs, report = pairs_from_scored(ROWS)
    assert brief(pairs) == {("p", " b", " a"), ("q", " y", " x")}
    (one,) = [pair for pair in pairs if pair["prompt"] == "q"]
    assert (one["chosen_reward"], one["rejected_reward"]) == (5.0, 0.0)
    assert (report.rows, report.prompts, report.pairs) == (5, 2, 2)


def test_all_and_threshold() -> None:
    pairs, _ = pairs_from_scored(ROWS, PairSettings(strategy="all"))
    assert brief(pairs) == {("p", " b", " a"), ("p", " b", " c"), ("p", " c", " a"), ("q", " y", " x")}
    pairs, _ = pairs_from_scored(ROWS, PairSettings(strategy="threshold", margin=2.0))
    assert brief(pairs) == {("p", " b", " a"), ("q", " y", " x")}
    pairs, report = pairs_from_scored(ROWS, PairSettings(margin=3.0))
    assert brief(pairs) == {("q", " y", " x")}
    assert report.counts["prompts with no two rewards far enough apart"] == 1


def test_cap_depends_on_seed_and_prompt_alone() -> None:
    rows = scored(*((prompt, f"t{i}", i) for prompt in "abc" for i in range(8)))
    settings = PairSettings(strategy="all", cap=4, seed=3)
    pairs, report = pairs_from_scored(rows, settings)
    assert len(pairs) == 12
    assert report.counts["pairs above the cap left out"] == 3 * (28 - 4)
    only_b, _ = pairs_from_scored([row for row in rows if row["prompt"] == "b"], settings)
    assert brief(only_b) == {pair for pair in brief(pairs) if pair[0] == "b"}
    assert brief(pairs) != brief(pairs_from_scored(rows, PairSettings(strategy="all", cap=4, seed=4))[0])


def test_order_is_seeded() -> None:
    rows = scored(*((f"p{i}", text, reward) for i in range(20) for text, reward in (("a", 1), ("b", 2))))
    first, again = (pairs_from_scored(rows, PairSettings(seed=1))[0] for _ in range(2))
    assert first == again
    assert first != pairs_from_scored(rows, PairSettings(seed=2))[0]
    plain, _ = pairs_from_scored(rows, PairSettings(shuffle=False))
    assert [pair["prompt"] for pair in plain] == [f"p{i}" for i in range(20)]


def test_repeated_completions_take_the_mean() -> None:
    rows = scored(("p", "a", 0), ("p", "a", 4), ("p", "b", 1), ("p", "c", -1))
    pairs, report = pairs_from_scored(rows)
    assert (pairs[0]["chosen"], pairs[0]["chosen_reward"]) == (" a", 2.0)
    assert report.counts["repeated completions merged"] == 1
    assert pairs_from_scored(rows, PairSettings(dedupe=False))[0][0]["chosen_reward"] == 4.0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "text": " ", "reward": 1}, "rows with an empty text left out"),
        ({"prompt": "p", "text": 3, "reward": 1}, "rows whose text is missing or no text left out"),
        ({"prompt": None, "text": "a", "reward": 1}, "rows without a prompt left out"),
        ({"prompt": "p", "text": "a", "reward": float("nan")}, "rows whose reward is no finite number left out"),
        ({"prompt": "p", "text": "a", "reward": "good"}, "rows whose reward is no finite number left out"),
    ],
)
def test_unusable_rows_are_counted(row: dict, reason: str) -> None:
    pairs, report = pairs_from_scored([*ROWS, row])
    assert len(pairs) == 2
    assert f"1 {reason} (first: row 5)" in report.lines()
    assert json.loads(json.dumps(report.to_dict()))["counts"][reason] == 1


def test_single_completions_and_ties_make_no_pair() -> None:
    pairs, report = pairs_from_scored(scored(("p", "a", 1), ("q", "b", 1), ("q", "c", 1)))
    assert pairs == []
    assert report.counts["prompts with one completion only"] == 1
    assert report.counts["prompts with no two rewards far enough apart"] == 1


def test_conversational_prompts() -> None:
    prompt = [{"role": "user", "content": "q"}]
    rows = [{"prompt": prompt, "completion": "a", "score": 0}, {"prompt": prompt, "completion": "b", "score": 1}]
    pairs, _ = pairs_from_scored(rows)
    assert pairs[0]["prompt"] == prompt
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("prompt", "text", "joiner", "expected"),
    [
        ("it real shocking", "when I", "auto", ("it real shocking", " when I")),
        ("it real shocking", ". The", "auto", ("it real shocking", ". The")),
        ("it real shocking ", "when", "auto", ("it real shocking ", "when")),
        ("it real shocking", " when", "auto", ("it real shocking", " when")),
        ("Burt Reynolds", "'s film", "auto", ("Burt Reynolds", "'s film")),
        ("he said", "'never'", "auto", ("he said", " 'never'")),
        ("he said", '"never"', "auto", ("he said", ' "never"')),
        ("release", "(as of", "auto", ("release", " (as of")),
        ("young", "-age racism", "auto", ("young", "-age racism")),
        ("happy", "- but", "auto", ("happy", " - but")),
        ("migraines (", "and", "auto", ("migraines (", "and")),
        ("", "when", "auto", ("", "when")),
        ("a", "b", "none", ("a", "b")),
        ("a", ".", "space", ("a", " .")),
        ("a", "b", "\n\n", ("a\n\n", "b")),
    ],
)
def test_joiner(prompt: str, text: str, joiner: str, expected: tuple[str, str]) -> None:
    assert joined(prompt, text, joiner) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best"}, "strategy='best' is unknown; choose from best_worst, all, threshold"),
        ({"strategy": "threshold"}, "set margin > 0"),
        ({"margin": -1.0}, "margin=-1.0 must be"),
        ({"margin": float("nan")}, "margin=nan must be"),
        ({"cap": 0}, "cap=0 must be at least 1"),
        ({"min_ratio": 0.5}, "min_ratio=0.5 must be at least 1"),
        ({"joiner": ""}, "joiner '' is empty"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairSettings(**settings)


def vote(**changes: object) -> dict:
    row = {"history": "post", "human_ref_A": "A", "human_ref_B": "B", "labels": 1, "score_A": 9, "score_B": 3}
    return {**row, **changes}


def test_votes() -> None:
    pairs, _ = pairs_from_votes([vote(), vote(history="other", labels=0)])
    assert brief(pairs) == {("post", " A", " B"), ("other", " B", " A")}
    pairs, report = pairs_from_votes([vote(labels=0)])
    assert report.counts["rows whose label contradicts the scores (label kept)"] == 1
    assert (pairs[0]["chosen_reward"], pairs[0]["rejected_reward"]) == (3.0, 9.0)
    row = vote()
    del row["labels"]
    assert brief(pairs_from_votes([row])[0]) == {("post", " A", " B")}
    assert brief(pairs_from_votes([vote()], PairSettings(joiner="\n\n"))[0]) == {("post\n\n", "A", "B")}
    assert len(pairs_from_votes([vote(), vote()])[0]) == 1


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        (vote(), PairSettings(min_ratio=3.5), "rows below the ratio left out"),
        (vote(score_ratio=2.0), PairSettings(min_ratio=2.5), "rows below the ratio left out"),
        (vote(), PairSettings(margin=7), "rows below the margin left out"),
        (vote(labels=None, score_B=9), PairSettings(), "rows without a preference"),
        (vote(labels=3), PairSettings(), "rows without a preference"),
        (vote(human_ref_B="A "), PairSettings(), "rows with two equal answers left out"),
        (vote(human_ref_A=None), PairSettings(), "rows with a missing or empty text left out"),
    ],
)
def test_votes_left_out(row: dict, settings: PairSettings, reason: str) -> None:
    pairs, report = pairs_from_votes([row], settings)
    assert pairs == []
    assert any(reason in line for line in report.lines())


rows_strategy = st.lists(
    st.tuples(st.sampled_from("pqrs"), st.sampled_from("abcdefgh"), st.integers(-5, 5).map(lambda x: x / 2)),
    max_size=40,
)


@given(rows_strategy, st.sampled_from(["best_worst", "all"]), st.sampled_from([0.0, 1.0]), st.sampled_from([None, 2]))
def test_pairs_hold_what_they_promise(triples: list, strategy: str, margin: float, cap: int | None) -> None:
    pairs, report = pairs_from_scored(scored(*triples), PairSettings(strategy=strategy, margin=margin, cap=cap))  # type: ignore[arg-type]
    texts = defaultdict(set)
    for prompt, text, _ in triples:
        texts[prompt].add(f" {text}")
    per_prompt: dict[str, int] = defaultdict(int)
    for pair in pairs:
        per_prompt[pair["prompt"]] += 1
        assert {pair["chosen"], pair["rejected"]} <= texts[pair["prompt"]]
        assert pair["chosen"] != pair["rejected"]
        assert pair["chosen_reward"] > pair["rejected_reward"]
        assert pair["chosen_reward"] - pair["rejected_reward"] >= margin
    assert len(brief(pairs)) == len(pairs) == report.pairs
    assert all(count <= (1 if strategy == "best_worst" else cap or 100) for count in per_prompt.values())


@given(rows_strategy.filter(lambda rows: len({row[0] for row in rows}) > 1), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_is_by_prompt(triples: list, fraction: float, seed: int) -> None:
    pairs = [{"prompt": prompt, "chosen": text, "rejected": "z"} for prompt, text, _ in triples]
    train, held = split_by_prompt(pairs, fraction, seed)
    assert train
    assert held
    assert not {pair["prompt"] for pair in train} & {pair["prompt"] for pair in held}
    assert sorted(map(str, train + held)) == sorted(map(str, pairs))


def test_split_refusals() -> None:
    with pytest.raises(DataError, match=r"eval_fraction=1\.5 must lie between 0 and 1"):
        split_by_prompt([{"prompt": "a"}, {"prompt": "b"}], 1.5)
    with pytest.raises(DataError, match="1 prompt"):
        split_by_prompt([{"prompt": "a"}], 0.5)


def test_imdb_best_worst_within_a_prompt() -> None:
    rows = read_lines(shared_file("imdb_scored.jsonl.gz"))
    pairs, report = pairs_from_scored(rows)
    assert report.counts["rows with an empty text left out"] == 13
    rewards = defaultdict(list)
    for row in rows:
        if row["text"].strip():
            rewards[row["prompt"]].append(row["reward"])
    assert len(pairs) == len(rewards) == 201
    for pair in pairs:
        mine = rewards[pair["prompt"]]
        assert pair["chosen_reward"] == max(mine)
        assert pair["rejected_reward"] == min(mine)
    words_run_together = [
        p for p in pairs for side in ("chosen", "rejected") if p["prompt"][-1:].isalnum() and p[side][0].isalnum()
    ]
    assert words_run_together == []


@pytest.mark.parametrize(("name", "prompts"), [("toxicity_scored.jsonl.gz", 204), ("tldr_scored.jsonl.gz", 572)])
def test_other_real_files(name: str, prompts: int) -> None:
    pairs, report = pairs_from_scored(read_lines(shared_file(name)))
    assert report.prompts == prompts
    assert len(pairs) > 0.98 * prompts


def test_completions_that_were_cut_off_can_be_left_out() -> None:
    rows = [
        {"prompt": "a", "text": text, "reward": reward, "finished": finished}
        for text, reward, finished in (("x", 1.0, True), ("y", 2.0, False), ("z", 0.5, None))
    ]
    (pair,), report = pairs_from_scored(rows, PairSettings(finished_only=True))
    assert (pair["chosen"], pair["rejected"]) == (" x", " z")  # where a server did not say, the row stays
    assert report.counts["rows that were cut off left out"] == 1
    (pair,), _ = pairs_from_scored(rows)
    assert pair["chosen"] == " y"
