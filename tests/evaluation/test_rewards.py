"""Rewards by specification: what they read, what they give, and what they refuse."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from sparsepo.evaluation.rewards import REWARDS, Reward, RewardKind, check_reward, get_reward
from sparsepo.playground.world import World
from tests.support import ARCHITECTURES, tiny_model, tiny_tokenizer

PROMPTS = ["the film", "a story with", "the actor"]
TEXTS = ["was good and warm", "a slow scene .", "is bad"]


def save_classifier(folder: Path, architecture: str = "gpt2", **changes: Any) -> Path:
    """A random sequence classifier with a tokenizer."""
    model_type, sizes = ARCHITECTURES[architecture]
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **{**sizes, **changes})
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.score.weight.mul_(40)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "NEGATIVE", 1: "POSITIVE", 2: "NEUTRAL"}
    return save_classifier(tmp_path_factory.mktemp("classifier"), num_labels=3, id2label=labels)


@pytest.fixture(scope="module")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("rater"), "llama", num_labels=1)


def direct(folder: Path, text: str) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tiny_tokenizer()(text, return_tensors="pt")).logits[0].double()


def test_a_class_s_probability_and_logit_are_the_model_s(sentiment: Path) -> None:
    for label, index in ((":neutral", 2), ("", 1)):
        spec = f"classifier:{sentiment}{label}"
        found = get_reward(spec)(PROMPTS, TEXTS)
        assert get_reward(spec).name == spec
        for value, prompt, text in zip(found, PROMPTS, TEXTS, strict=True):
            p = direct(sentiment, f"{prompt} {text}").softmax(-1)[index]
            assert value == pytest.approx(float(p), abs=1e-6)
    logits = get_reward(f"classifier:{sentiment}", output="logit", reads="completion")(PROMPTS, TEXTS)
    p = direct(sentiment, TEXTS[0]).softmax(-1)[1]
    assert logits[0] == pytest.approx(float(p.log() - (1 - p).log()), abs=1e-4)


def test_a_reward_model_s_number_whatever_the_batch(rater: Path) -> None:
    expected = [float(direct(rater, f"{prompt} {text}")[0]) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    for batch_size in (1, 2, 32):
        assert get_reward(f"regression:{rater}", batch_size=batch_size)(PROMPTS, TEXTS) == pytest.approx(
            expected, abs=1e-5
        )
    assert max(expected) - min(expected) > 1e-3
    assert get_reward(f"regression:{rater}")([], []) == []


def test_long_texts_lose_their_beginning_and_it_is_said(sentiment: Path) -> None:
    reward = get_reward(f"classifier:{sentiment}", max_length=4)
    assert reward(["bad bad bad bad"], ["the film was good"]) == pytest.approx(
        get_reward(f"classifier:{sentiment}", reads="completion")([""], ["the film was good"])
    )
    assert reward.notes() == ["1 of 1 texts were longer than 4 tokens: their beginning was cut"]
    # an empty completion is its end token, not an error in the middle of a run
    assert len(get_reward(f"classifier:{sentiment}", reads="completion")(["the"], [""])) == 1


def test_encoders_count_their_positions(tmp_path: Path) -> None:
    """RoBERTa's positions begin behind the padding token's: of 12 there are 11 (padding is token 0)."""
    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = AutoConfig.for_model("roberta", **sizes, max_position_embeddings=12, pad_token_id=0, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reward = get_reward(f"regression:{tmp_path}")
    assert len(reward(["the " * 20, "the"], ["film was good", "film"])) == 2
    assert "longer than 11 tokens" in reward.notes()[0]


def test_conversations_need_a_chat_template(rater: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "the film"}]
    with pytest.raises(ValueError, match="no chat template; let it read the completion alone"):
        get_reward(f"regression:{rater}")([chat], ["was good"])
    folder = save_classifier(tmp_path, "llama", num_labels=1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    found = get_reward(f"regression:{folder}")([chat], ["was good"])
    assert found[0] == pytest.approx(float(direct(folder, "the film was good ")[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("sentiment", {}, r"reward 'sentiment' is unknown; rewards are\n.*classifier:MODEL\[:LABEL\]"),
        ("classifier", {}, r"write classifier:MODEL\[:LABEL\]"),
        ("playground:x", {}, "write playground"),
        (
            "playground",
            {"batch_size": 2},
            "batch_size has no effect on reward 'playground'; options of playground: none",
        ),
        ("classifier:{sentiment}:GLAD", {}, "has no label 'GLAD': .* one of NEGATIVE, POSITIVE, NEUTRAL"),
        ("classifier:{rater}", {}, "has one output and no classes; write regression:"),
        ("regression:{sentiment}", {}, "has 3 outputs .NEGATIVE, POSITIVE, NEUTRAL.; a reward is one number"),
        ("classifier:{sentiment}", {"output": "odds"}, "output='odds' is unknown; choose one of probability, logit"),
        ("classifier:{sentiment}", {"max_length": 0}, "max_length=0 must be at least 1"),
        ("classifier:./nowhere", {}, "no such folder"),
        ("regression:{policy}", {}, "lacks weights .score.weight.: it is no trained sequence classifier"),
        ("lexicon:/nowhere.zip", {}, "there is no such file"),
        ("lexicon:{other}", {}, "holds neither vader_lexicon.txt nor"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    sentiment: Path, rater: Path, tmp_path: Path, spec: str, options: dict[str, Any], said: str
) -> None:
    policy = tmp_path / "policy"
    if "{policy}" in spec:
        tiny_model("gpt2").save_pretrained(policy)
        tiny_tokenizer().save_pretrained(policy)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("words.txt", "x")
    given = spec.format(sentiment=sentiment, rater=rater, policy=policy, other=other)
    with pytest.raises(ValueError, match=f"(?s){said}"):
        get_reward(given, **options)


def test_lexicons_count_words(data_folder: Path) -> None:
    vader, opinion = data_folder / "vader_lexicon.zip", data_folder / "opinion_lexicon.zip"
    texts = ["a wonderful, brilliant film", "a TERRIBLE film.", "the film is on monday"]
    for spec in (f"lexicon:{vader}", f"lexicon:{opinion}", f"lexicon:{opinion},{vader}"):
        good, bad, neutral = get_reward(spec)([""] * 3, texts)
        assert good == pytest.approx(1 / (1 + math.exp(-2)))
        assert bad == pytest.approx(1 / (1 + math.exp(1)))
        assert neutral == 0.5
    with pytest.raises(ValueError, match="are the same list; give one"):
        get_reward(f"lexicon:{vader},{vader}")


def test_the_playground_s_reward_is_the_world_s() -> None:
    reviews = World().reviews(5, 0)
    found = get_reward("playground")([r.prompt for r in reviews], [r.response for r in reviews])
    assert found == [World().reward(r.response) for r in reviews]


class Broken(Reward):
    def score(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [1.0, math.nan]


def broken(argument: str) -> Broken:
    return Broken()


def test_a_kind_can_be_added_and_its_numbers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "broken", RewardKind("broken:X", "a test", f"{__name__}:broken"))
    check_reward("broken:x")
    with pytest.raises(ValueError, match="Reward broken:x of row 1 is nan, no finite number: 'b'"):
        get_reward("broken:x")(["p", "p"], ["a", "b"])
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        get_reward("broken:x")(["p"], ["a", "b"])
