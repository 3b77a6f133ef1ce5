"""Single metrics: equal to the libraries, right on examples worked by hand, defined at the edges."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from sparsepo.evaluation.summaries.bert import BertScorer, layer_of, max_tokens
from sparsepo.evaluation.summaries.diversity import distinct, self_bleu
from sparsepo.evaluation.summaries.faithfulness import (
    edna,
    entailment_matrix,
    faithfulness,
    self_entailment,
    summac_zs,
)
from sparsepo.evaluation.summaries.overlap import rouge
from sparsepo.evaluation.summaries.sentences import split_sentences

from .encoders import encoder_config, save_encoder

TEXTS = st.lists(st.text(alphabet="ab cé漢.!🙂\n\u202e", max_size=20), min_size=2, max_size=4)


# ---- ROUGE ----


def test_rouge_equals_the_library_and_hand_counts() -> None:
    found = rouge("the cat sat", ["the cat ran home"])
    # two of three words, two of four: precision 2/3, recall 1/2
    assert found["rouge1"] == pytest.approx(100 * 4 / 7)
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    library = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score("running home", "he runs home now")
    assert rouge("he runs home now", ["running home"]) == {
        name: pytest.approx(100 * score.fmeasure) for name, score in library.items()
    }


def test_rouge_takes_the_best_reference_of_each_type() -> None:
    summary, references = "a b c d", ["a b x y", "d c b a"]
    alone = [rouge(summary, [reference]) for reference in references]
    assert rouge(summary, references) == {name: max(one[name] for one in alone) for name in alone[0]}


def test_rouge_at_the_edges() -> None:
    assert rouge("", ["a cat"]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert rouge("漢字", ["漢字"])["rouge1"] == 0.0  # the library reads ASCII only, as the docstring says
    with pytest.raises(ValueError, match="at least one reference"):
        rouge("a cat", [])


# ---- diversity ----


def test_self_bleu_is_the_mean_of_the_librarys_sentence_bleu() -> None:
    samples = ["the cat sat on the mat", "the cat ran on the mat", "a dog barked at the moon tonight"]
    expected = [
        sacrebleu.sentence_bleu(samples[i], [samples[j] for j in range(3) if j != i]).score for i in range(3)
    ]  # fmt: skip
    assert self_bleu(samples) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("text", ["the cat sat on the mat", "cat", "", "漢字 é 🙂", " . "])
def test_equal_samples_have_100(text: str) -> None:
    assert self_bleu([text] * 3) == 100.0


@given(TEXTS)
def test_self_bleu_lies_between_0_and_100_and_knows_no_order(samples: list[str]) -> None:
    found = self_bleu(samples)
    assert found is not None
    assert 0 <= found <= 100
    assert self_bleu(samples[::-1]) == pytest.approx(found)


def test_self_bleu_needs_two_samples_and_words_in_common() -> None:
    assert self_bleu(["a cat"]) is None
    assert self_bleu(["a cat sat here", "one dog ran there"]) == pytest.approx(0, abs=1e-9)
    assert self_bleu(["", "a cat"]) == 0.0


def test_distinct_by_hand() -> None:
    samples = ["a b a b", "a c"]
    assert distinct(samples, 1) == 3 / 6
    assert distinct(samples, 2) == 3 / 4  # ab, ba, ab, ac; none across the two samples
    assert distinct(["a", ""], 2) is None
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        distinct(samples, 0)


# ---- faithfulness ----


class Matrix:
    """An entailment model whose answers are written down; it reads at most ``longest`` characters at once."""

    def __init__(self, known: dict[tuple[str, str], float], longest: int = 1000) -> None:
        self.known, self.longest = known, longest

    def pieces(self, sentence: str) -> list[str]:
        return [sentence[i : i + self.longest] for i in range(0, len(sentence), self.longest)]

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> Any:
        return np.array([self.known.get(pair, 0.0) for pair in pairs])


def test_zero_shot_score_is_max_over_the_document_and_mean_over_the_summary() -> None:
    assert summac_zs(np.array([[0.9, 0.1], [0.3, 0.5], [0.2, 0.4]])) == pytest.approx((0.9 + 0.5) / 2)
    known = {("The cat sat.", "A cat."): 0.8, ("It ate.", "A cat."): 0.1, ("It ate.", "It flew!"): 0.2}
    nli = Matrix(known)
    matrix = entailment_matrix("The cat sat. It ate.", "A cat. It flew!", nli)
    assert matrix.tolist() == [[0.8, 0.0], [0.1, 0.2]]
    assert faithfulness("The cat sat. It ate.", "A cat. It flew!", nli) == pytest.approx(0.5)


@pytest.mark.parametrize(("document", "summary"), [("", "A cat."), ("A cat.", ""), ("A cat.", " ... \n"), ("", "")])
def test_what_says_nothing_or_has_no_support_has_0(document: str, summary: str) -> None:
    assert faithfulness(document, summary, Matrix({})) == 0.0


def test_long_sentences_are_read_in_parts() -> None:
    nli = Matrix({("abcd", "xy"): 0.2, ("ef", "xy"): 0.7}, longest=4)
    assert entailment_matrix("abcdef", "xy", nli).tolist() == [[0.2], [0.7]]
    assert faithfulness("abcdef", "xy", nli) == pytest.approx(0.7)


def test_self_entailment_is_over_ordered_pairs() -> None:
    nli = Matrix({("A.", "B."): 0.6, ("B.", "A."): 0.2})
    assert self_entailment(["A.", "B."], nli) == pytest.approx(0.4)
    assert self_entailment(["A."], nli) is None


def test_edna_is_the_harmonic_mean() -> None:
    assert edna(0.8, 0.6) == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert edna(0.0, 1.0) == 0.0
    assert edna(0.9, 1.0) == 0.0
    assert edna(0.9, None) is None


# ---- sentences ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He left. she stayed! why?", ["He left.", "she stayed!", "why?"]),
        ("Dr. J. Smith paid $3.50, e.g. cash. I did too.", ["Dr. J. Smith paid $3.50, e.g. cash.", "I did too."]),
        ("So did I. He left", ["So did I.", "He left"]),
        ('"Go." (Now!) ok', ['"Go."', "(Now!)", "ok"]),
        ("one\n\ntwo", ["one", "two"]),
        ("今日は。はい！終わり", ["今日は。", "はい！", "終わり"]),
        ("Really... yes. :) ", ["Really...", "yes. :)"]),
        (" \n ?! ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(alphabet="aB.!?…。」 \n\"')é漢1ISU🙂", max_size=60))
def test_no_letter_is_lost_between_sentences(text: str) -> None:
    def letters(one: str) -> list[str]:
        return [character for character in one if character.isalnum()]

    assert letters("".join(split_sentences(text))) == letters(text)


# ---- BERTScore ----


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertScorer:
    return BertScorer(str(save_encoder(tmp_path_factory.mktemp("encoder"))), num_layers=2, device="cpu")


def test_bertscore_equals_the_library(bert: BertScorer) -> None:
    import bert_score

    summaries, references = ["a cat", "the dog ran"], [["cats"], ["a dog", "the dog ran"]]
    _, _, expected = bert_score.score(summaries, references, model_type=bert.model, num_layers=2, device="cpu")
    assert bert(summaries, references) == pytest.approx(expected.tolist(), abs=1e-6)
    assert bert(["a cat"], [["a cat"]]) == [pytest.approx(1.0, abs=1e-6)]


def test_bertscore_at_the_edges(bert: BertScorer) -> None:
    long = "word " * 200  # beyond the encoder's 64 positions
    found = bert(["", " ", long, "漢🙂"], [["a"], ["a"], ["a cat"], ["漢字"]])
    assert found[:2] == [0.0, 0.0]
    assert all(0 < value <= 1 for value in found[2:])
    assert bert([], []) == []


def test_a_tokenizer_without_a_limit_is_given_the_encoders(tmp_path: Path) -> None:
    scorer = BertScorer(str(save_encoder(tmp_path, max_length=None)), num_layers=1, device="cpu")
    assert 0 < scorer(["x" * 500], [["y"]])[0] <= 1


def test_layers_are_known_or_asked_for(tmp_path: Path) -> None:
    assert layer_of("roberta-large", None) == layer_of("some/folder/roberta-large", None) == 17
    assert layer_of("some/folder/roberta-large", 3) == 3
    with pytest.raises(ValueError, match="give bert_layers"):
        layer_of("some/model", None)
    with pytest.raises(ValueError, match="bert_layers=9"):
        BertScorer(str(save_encoder(tmp_path)), num_layers=9, device="cpu")


def test_positions_that_are_reserved_do_not_count() -> None:
    assert max_tokens(encoder_config()) == 64
    from transformers import AutoConfig

    assert max_tokens(AutoConfig.for_model("roberta", max_position_embeddings=514, pad_token_id=1)) == 512


# ---- packages ----


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("rouge_score", lambda: rouge("a", ["b"])),
        ("sacrebleu", lambda: self_bleu(["a b", "c d"])),
        ("bert_score", lambda: layer_of("roberta-large", None)),
    ],
)
def test_a_missing_package_is_named_and_only_its_metric_stops(
    package: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsepo.evaluation.summaries import diversity, overlap, requirements

    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    def find(name: str) -> Any:
        return absent(name, fromlist=["x"])

    overlap._scorer.cache_clear()
    diversity._tokenizer.cache_clear()
    monkeypatch.setattr(requirements.importlib, "import_module", find)
    with pytest.raises(ImportError, match=rf"needs the package {package.replace('_', '-')}.*sparsepo\[summaries\]"):
        call()
    assert faithfulness("A.", "B.", Matrix({})) == 0.0  # needs none of them
