"""Sets of summaries: NLI models, scoring in parts, comparison, intervals, sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation import sample_completions
from sparsepo.evaluation.summaries import (
    METRICS,
    Judges,
    SummaryItem,
    SummarySet,
    bootstrap_mean,
    compare,
    score_set,
)
from sparsepo.evaluation.summaries.items import own_references
from sparsepo.evaluation.summaries.metrics import GROUPS
from sparsepo.evaluation.summaries.nli import NliModel, entailment_label
from sparsepo.evaluation.summaries.sampling import Sampling, sample_summaries, shortened
from sparsepo.evaluation.summaries.scoring import BLOCK

from .encoders import letter_tokenizer, nli_model


@pytest.fixture(scope="module")
def nli() -> NliModel:
    return NliModel(nli_model(), letter_tokenizer(), batch_size=3)


def item(number: int, *summaries: str, reference: str = "the cat sat") -> SummaryItem:
    return SummaryItem(f"p{number}", "The cat sat. It ate.", summaries, (reference,) if reference else ())


# ---- the NLI model ----


def test_probabilities_are_those_of_the_model_whatever_the_batch(nli: NliModel) -> None:
    pairs = [("a cat", "b"), ("the dog ran off", "it ran"), ("x", "yyyyyyyyyyyyyyyyyyy"), ("a cat", "b")]
    found = nli.probabilities(pairs)
    for (premise, hypothesis), value in zip(pairs, found, strict=True):
        inputs = nli.tokenizer(premise, hypothesis, return_tensors="pt")
        with torch.no_grad():
            expected = nli.model(**inputs).logits.softmax(-1)[0, 2]
        assert value == pytest.approx(float(expected), abs=1e-5)
    assert len({round(float(value), 6) for value in found}) == 3


@pytest.mark.parametrize(
    ("labels", "place"),
    [
        ({0: "contradiction", 1: "neutral", 2: "entailment"}, 2),
        ({0: "ENTAILMENT", 1: "NEUTRAL", 2: "CONTRADICTION"}, 0),
        ({0: "not_entailment", 1: "entailment"}, 1),
    ],
)
def test_the_label_is_found_by_its_name(labels: dict[int, str], place: int) -> None:
    assert entailment_label(labels) == place


@pytest.mark.parametrize(
    "labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "entailment", 1: "Entailment"}, {0: "positive", 1: "not_entailment"}]
)
def test_labels_that_do_not_say_it_are_refused(labels: dict[int, str]) -> None:
    with pytest.raises(ValueError, match="exactly one must be called 'entailment'"):
        NliModel(nli_model(labels), letter_tokenizer())


def test_long_sentences_come_in_parts_that_fit_and_are_counted() -> None:
    model = NliModel(nli_model(), letter_tokenizer())
    assert model.piece_length == (64 - 3) // 2
    long = "word " * 30
    pieces = model.pieces(long)
    assert len(pieces) > 1
    assert " ".join(pieces).split() == long.split()
    assert all(len(model.tokenizer(p, add_special_tokens=False)["input_ids"]) <= model.piece_length for p in pieces)
    assert model.pieces("short") == ["short"]
    model.pieces(long)
    assert model.chunked == 1
    assert np.isfinite(model.probabilities([("x" * 200, "y" * 200)])).all()  # one endless word is cut


# ---- sets ----


def test_a_set_is_checked() -> None:
    with pytest.raises(ValueError, match="no summary"):
        SummaryItem("p", "d", ())
    with pytest.raises(ValueError, match="there are no summaries"):
        SummarySet("x", ())
    with pytest.raises(ValueError, match="a prompt occurs twice"):
        SummarySet("x", (item(0, "a"), item(0, "b")))


def test_scores_are_those_of_the_functions(nli: NliModel) -> None:
    from sparsepo.evaluation.summaries.faithfulness import edna, faithfulness, self_entailment
    from sparsepo.evaluation.summaries.overlap import rouge

    samples = ("the cat ate", "it sat there", "")
    source = SummarySet("x", (item(0, *samples), item(1, "the cat sat", reference="")))
    found = score_set(source, ["rouge", "diversity", "faithfulness", "length"], Judges(nli=lambda: nli)).values
    assert found["rouge1"] == [
        pytest.approx(np.mean([rouge(s, ["the cat sat"])["rouge1"] for s in samples])),
        None,
    ]
    faithful = np.mean([faithfulness(source.items[0].document, s, nli) for s in samples])
    among = self_entailment(samples, nli)
    assert found["faithfulness"][0] == pytest.approx(faithful)
    assert found["edna"] == [pytest.approx(edna(float(faithful), among)), None]
    assert found["self_bleu"][1] is None
    assert found["words"] == [pytest.approx(2.0), 3.0]
    assert found["empty"] == [pytest.approx(1 / 3), 0.0]
    assert set(found) <= set(METRICS)


def test_parts_are_kept_and_not_computed_again() -> None:
    kept: dict[str, Any] = {}
    made: list[str] = []

    def keep(key: str, make: Callable[[], Any]) -> Any:
        if key not in kept:
            made.append(key)
            kept[key] = make()
        return kept[key]

    def source(changed: str = "s") -> SummarySet:
        return SummarySet("x", tuple(item(n, f"{changed if n == 0 else 's'} {n}", "b") for n in range(BLOCK + 1)))

    seen: list[tuple[int, int]] = []
    first = score_set(source(), ["rouge"], Judges(), keep, lambda *now: seen.append(now))
    assert seen == [(BLOCK, BLOCK + 1), (BLOCK + 1, BLOCK + 1)]
    assert len(made) == 2
    assert score_set(source(), ["rouge"], Judges(), keep).values == first.values
    assert len(made) == 2
    score_set(source("other"), ["rouge"], Judges(), keep)  # one text of the first part is another
    assert len(made) == 3


def test_keys_change_with_the_judge() -> None:
    keys: list[str] = []

    def keep(key: str, make: Callable[[], Any]) -> Any:
        keys.append(key)
        return {"faithfulness": [0.5], "self_entailment": [0.5], "edna": [0.5]}

    for name in ("one", "other"):
        score_set(SummarySet("x", (item(0, "a"),)), ["faithfulness"], Judges(nli=lambda: None, nli_name=name), keep)  # type: ignore[arg-type, return-value]
    assert len(set(keys)) == 2


def test_groups_are_checked() -> None:
    source = SummarySet("x", (item(0, "a"),))
    for group in ("bertscore", "faithfulness"):
        with pytest.raises(ValueError, match=f"metrics={group} needs a model"):
            score_set(source, [group], Judges())
    with pytest.raises(ValueError, match="metrics='bleu' is unknown; choose from rouge"):
        score_set(source, ["bleu"], Judges())
    assert {metric.group for metric in METRICS.values()} == set(GROUPS)


def test_differences_are_paired_by_prompt() -> None:
    one = score_set(SummarySet("a", (item(0, "the cat"), item(1, "the cat sat"), item(2, "no"))), ["rouge"], Judges())
    other = score_set(SummarySet("b", (item(1, "the dog"), item(0, "the cat"), item(9, "x"))), ["rouge"], Judges())
    found = compare(one, other)["rouge1"]
    expected = [0.0, one.values["rouge1"][1] - other.values["rouge1"][0]]  # type: ignore[operator]
    assert found["count"] == 2
    assert found["value"] == pytest.approx(np.mean(expected))
    assert compare(other, one)["rouge1"]["value"] == pytest.approx(-found["value"])


def test_summaries_that_are_their_own_reference_are_counted() -> None:
    assert own_references([item(0, " the cat sat ", "x"), item(1, "the cat sat")]) == 2


# ---- intervals ----


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_intervals_hold_the_mean_and_stay_within_the_values(values: list[float]) -> None:
    found = bootstrap_mean(values, draws=200)
    assert min(values) - 1e-9 <= found["low"] <= found["high"] <= max(values) + 1e-9
    assert found["value"] == pytest.approx(np.mean(values))


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    trials = 200
    inside = 0
    for trial in range(trials):
        found = bootstrap_mean(rng.exponential(size=60).tolist(), seed=trial, draws=300)
        inside += found["low"] <= 1.0 <= found["high"]
    assert 0.88 <= inside / trials <= 0.99


def test_intervals_at_the_edges() -> None:
    assert bootstrap_mean([]) == {"value": None, "low": None, "high": None, "count": 0}
    assert bootstrap_mean([2.0]) == {"value": 2.0, "low": None, "high": None, "count": 1}
    assert bootstrap_mean([1.0, 2.0, 4.0], seed=1) == bootstrap_mean([1.0, 2.0, 4.0], seed=1)


# ---- sampling ----

PROMPTS = ["the film", "a plot", "the old house and the new", "i saw", "the"]


def test_sampling_in_parts_is_sampling_at_once(policy: Any, tokenizer: Any) -> None:
    def load() -> tuple[Any, Any]:
        return policy, tokenizer

    settings = {"samples": 2, "top_p": 0.9, "max_new_tokens": 5, "seed": 4}
    whole = sample_summaries(load, PROMPTS, 1.0, Sampling(**settings))  # type: ignore[arg-type]
    parts = sample_summaries(load, PROMPTS, 1.0, Sampling(**settings, block=2, batch_size=3))  # type: ignore[arg-type]
    assert parts == whole
    direct = sample_completions(
        policy, tokenizer, PROMPTS, max_new_tokens=5, samples_per_prompt=2, top_p=0.9, seed=4, temperature=1.0
    )
    assert [[row["text"] for row in group] for group in whole] == [[one.text for one in group] for group in direct]
    assert len({row["text"] for group in whole for row in group}) > 5


def test_greedy_samples_are_one_text_and_kept_parts_need_no_model(policy: Any, tokenizer: Any) -> None:
    kept: dict[str, Any] = {}

    def keep(key: str, make: Callable[[], Any]) -> Any:
        return kept[key] if key in kept else kept.setdefault(key, make())

    sampling = Sampling(samples=3, max_new_tokens=4, block=2)
    first = sample_summaries(lambda: (policy, tokenizer), PROMPTS, 0.0, sampling, keep)
    assert all(len({row["text"] for row in group}) == 1 and len(group) == 3 for group in first)
    assert [row["sample"] for row in first[0]] == [0, 1, 2]
    assert sorted(kept) == ["samples-00000", "samples-00002", "samples-00004"]

    def refuse() -> tuple[Any, Any]:
        raise AssertionError("the model is not needed")

    assert sample_summaries(refuse, PROMPTS, 0.0, sampling, keep) == first


@pytest.mark.parametrize("setting", ["samples", "max_new_tokens", "block", "batch_size"])
def test_sampling_settings_are_checked(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=0 must be at least 1"):
        Sampling(**{setting: 0})


def test_numbers_of_prompts_are_one_each(policy: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="numbers has 1 entries for 5 prompts"):
        sample_completions(policy, tokenizer, PROMPTS, max_new_tokens=1, numbers=[0])


def test_long_prompts_keep_their_end(tokenizer: Any) -> None:
    text = "the film was long . the old house"
    assert shortened(tokenizer, text, 99) == text
    cut = shortened(tokenizer, text, 3)
    assert cut == "the old house"
    with pytest.raises(ValueError, match="no room for a prompt"):
        shortened(tokenizer, text, 0)
