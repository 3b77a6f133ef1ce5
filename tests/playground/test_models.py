"""Tokenizer and model are ordinary Hugging Face objects; supervised training learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo.playground.models import build_model, build_tokenizer, train_sft
from sparsepo.playground.quiet import quiet_libraries
from sparsepo.playground.world import World

WORLD = World()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(WORLD)


def test_tokenizer_round_trip_through_auto_classes(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for review in WORLD.reviews(50, 0):
        ids = loaded(review.text)["input_ids"]
        assert ids == tokenizer(review.text)["input_ids"]
        assert loaded.decode(ids) == review.text
        assert loaded.convert_ids_to_tokens(ids) == review.text.split()
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")
    assert len({loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id}) == 3
    assert len(loaded) == len(WORLD.vocabulary) + 3


def test_tokens_of_a_prompt_are_a_prefix_of_the_whole(tokenizer: Any) -> None:
    for review in WORLD.reviews(20, 0):
        prompt, whole = (tokenizer(text)["input_ids"] for text in (review.prompt, review.text + "<eos>"))
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id


def test_offsets_find_the_preference_words(tokenizer: Any) -> None:
    text = "the film was truly superb ."
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert [text[a:b] for a, b in encoded["offset_mapping"]] == text.split()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_models_are_small_seeded_and_plain(architecture: str, tokenizer: Any, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    model = build_model(tokenizer, architecture, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.3e6 < sum(p.numel() for p in model.parameters()) < 0.4e6
    same, other = build_model(tokenizer, architecture, seed=3), build_model(tokenizer, architecture, seed=4)
    ids = torch.tensor([tokenizer("the film was long .")["input_ids"]])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, same(ids).logits)
        assert not torch.equal(model(ids).logits, other(ids).logits)
        torch.testing.assert_close(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_unknown_architecture_is_named(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="architecture='rnn' is unknown; choose one of gpt2, llama"):
        build_model(tokenizer, "rnn")


def test_supervised_training_is_seeded_learns_and_reports(tokenizer: Any, tmp_path: Path) -> None:
    def train(folder: str) -> tuple[Any, list[tuple[int, int, dict[str, float]]]]:
        steps: list[tuple[int, int, dict[str, float]]] = []
        with quiet_libraries():
            model = train_sft(
                build_model(tokenizer, hidden_size=16, layers=1, heads=2),
                tokenizer,
                WORLD.reviews(64, 0),
                tmp_path / folder,
                epochs=6,
                learning_rate=1e-2,
                batch_size=16,
                on_step=lambda done, total, values: steps.append((done, total, dict(values))),
            )
        return model, steps

    model, steps = train("a")
    assert [done for done, _, _ in steps] == list(range(1, 25))
    assert steps[-1][1] == 24
    losses = [values["loss"] for _, _, values in steps if "loss" in values]
    assert losses[-1] < losses[0] - 0.3
    again, _ = train("b")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not any(name.startswith("checkpoint") for name in map(str, tmp_path.iterdir()))
    assert AutoTokenizer.from_pretrained(tmp_path / "a").eos_token == "<eos>"
