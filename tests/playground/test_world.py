"""The world: seeded, its words known, its probabilities exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.evaluation import roc_auc
from sparsepo.playground.ceiling import PrefixOracle
from sparsepo.playground.vocabulary import HELD_OUT, NEGATIVE, NEUTRAL, POSITIVE
from sparsepo.playground.world import NEUTRAL_TEMPLATES, World

WORLD = World()


def test_same_seed_same_texts_and_other_seeds_others() -> None:
    assert WORLD.reviews(20, 1) == World().reviews(20, 1)
    assert WORLD.reviews(20, 1)[:5] == WORLD.reviews(5, 1)
    assert WORLD.reviews(20, 1) != WORLD.reviews(20, 2)
    assert WORLD.reviews(20, 1) != WORLD.reviews(20, 1, stream="other")
    assert WORLD.prompts(50, 1)[:10] == WORLD.prompts(10, 1)


def test_the_generator_is_frozen() -> None:
    """Studies compare numbers over time: a change of the generator must be a decision."""
    assert WORLD.reviews(1, 0)[0].text == (
        "review of thunder crown : in the music the island was quiet . a printed hero with a green station . in the "
        "teacher the mother was french . it was a pilot about a script . we studied the seasonal costume by the plot . the "
        "scene was truly charming ."
    )
    assert len(WORLD.vocabulary) == 223


def test_word_lists() -> None:
    assert len(WORLD.positive_words) == len(WORLD.negative_words) == 15
    assert not WORLD.positive_words & WORLD.negative_words
    neutral = {word for words in NEUTRAL.values() for word in words}
    assert not neutral & WORLD.preference_words
    assert sum(map(len, NEUTRAL.values())) == len(neutral), "a neutral word belongs to two classes"
    for name in POSITIVE:  # neutral words outnumber preference words in every class
        assert len(NEUTRAL[name]) >= 2 * (len(POSITIVE[name]) + len(NEGATIVE[name]))
    assert len(WORLD.held_out_words & WORLD.positive_words) == len(WORLD.held_out_words & WORLD.negative_words) == 5
    assert WORLD.preference_words > HELD_OUT


def test_texts_have_the_promised_shape() -> None:
    for review in WORLD.reviews(200, 5):
        assert review.prompt.startswith("review of ")
        assert review.prompt.split()[4] == ":"
        assert not any(WORLD.preference_marks(review.prompt.split()))
        assert 3 <= review.response.split().count(".") <= 5
        assert review.response[0] == " "
        assert set(review.text.split()) <= set(WORLD.vocabulary)
        assert " ".join(review.text.split()) == review.text
    prompts = WORLD.prompts(300, 5)
    assert len(set(prompts)) == 300
    assert NEUTRAL_TEMPLATES


@given(st.lists(st.sampled_from(World().vocabulary), max_size=30))
def test_reward_and_marks_count_the_known_words(words: list[str]) -> None:
    positive = sum(word in ["loved", "adored", "enjoyed", "masterpiece", "triumph", "gem"] for word in words)
    text = " ".join(words)
    assert WORLD.counts(text)[0] >= positive
    assert sum(WORLD.counts(text)) == sum(WORLD.preference_marks(words))
    difference = WORLD.counts(text)[0] - WORLD.counts(text)[1]
    assert WORLD.reward(text) == pytest.approx(1 / (1 + math.exp(-difference)))
    content = WORLD.open_class_marks(words)
    assert all(content[i] for i, marked in enumerate(WORLD.preference_marks(words)) if marked)


def test_marks_of_one_sentence_by_hand() -> None:
    words = ["the", "dull", "film", "was", "truly", "superb", "."]
    assert WORLD.preference_marks(words) == [False, True, False, False, False, True, False]
    assert WORLD.open_class_marks(words) == [False, True, True, False, False, True, False]
    assert WORLD.counts(" ".join(words)) == (1, 1)


def test_oracle_by_hand() -> None:
    """First sentence, mood unknown: after "i" only "i {verb:.5}" is possible, after "the hotel was truly" {.85}."""
    oracle = PrefixOracle(WORLD)
    np.testing.assert_allclose(oracle.probabilities(["i", "saw", "the", "hotel", "."]), [0, 0.5, 0, 0, 0], atol=1e-12)
    after = oracle.probabilities(["the", "hotel", "was", "truly", "grey"])
    assert after[-1] == pytest.approx(0.85)
    # "the": five templates of weight 2 continue it, of which one has a preference word with .4 in this place
    weights = {"the {aspect} was": 2, "the {aspect} was {degree}": 2, "the {aspect} and": 2, "the {adjective:.4}": 2}
    assert after[1] == pytest.approx(0.4 * 2 / sum(weights.values()))


def test_oracle_is_calibrated_and_is_the_ceiling() -> None:
    oracle = PrefixOracle(WORLD)
    probability, label = [], []
    for review in WORLD.reviews(400, 9):
        words = review.response.split()
        probability += oracle.probabilities(words).tolist()
        label += WORLD.preference_marks(words)
    p, y = np.array(probability), np.array(label)
    for low in np.arange(0, 1, 0.1):
        inside = (p > low) & (p <= low + 0.1)
        if inside.sum() > 50:
            error = math.sqrt((p[inside] * (1 - p[inside])).sum()) / inside.sum()
            assert abs(y[inside].mean() - p[inside].mean()) < 4.5 * error
    assert not y[p == 0].any()
    # far above chance and clearly below certainty: a mask at the predicting position cannot know the word
    assert 0.96 < roc_auc(p, y) < 0.985


def test_oracle_survives_ungrammatical_text() -> None:
    values = PrefixOracle(WORLD).probabilities(["truly", "the", "the", "nonsense", ".", "i", "saw"])
    assert np.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()
