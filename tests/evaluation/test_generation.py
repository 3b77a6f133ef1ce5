"""Sampling: seeded, independent of batching and padding, faithful to the model's distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TopPLogitsWarper

from sparsepo.evaluation import sample_completions
from sparsepo.playground.world import World

from .conftest import sharpened

PROMPTS = ["review of silver paper :", "the", "the film was long . the", "i saw the old house and the new", "a plot"]


def sample(model: Any, tokenizer: Any, prompts: Any = PROMPTS, **settings: Any) -> list[list[tuple[int, ...]]]:
    groups = sample_completions(model, tokenizer, prompts, **{"max_new_tokens": 8, "seed": 3, **settings})
    return [[completion.token_ids for completion in group] for group in groups]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0}])
def test_batching_and_padding_change_nothing(architecture: str, settings: dict[str, float], tokenizer: Any) -> None:
    model = sharpened(2, architecture)
    alone = sample(model, tokenizer, samples_per_prompt=2, batch_size=1, **settings)
    assert alone == sample(model, tokenizer, samples_per_prompt=2, batch_size=4, **settings)
    assert alone == sample(model, tokenizer, samples_per_prompt=2, batch_size=64, **settings)
    assert len({tokens for group in alone for tokens in group}) > 1


def test_seed_decides_and_the_global_state_does_not(policy: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample(policy, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert sample(policy, tokenizer) == first
    assert sample(policy, tokenizer, seed=4) != first


def test_more_samples_begin_with_fewer(policy: Any, tokenizer: Any) -> None:
    few, many = (sample(policy, tokenizer, samples_per_prompt=n) for n in (1, 3))
    assert [group[:1] for group in many] == few
    assert any(len(set(group)) > 1 for group in many)


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_frequencies_follow_the_model(policy: Any, tokenizer: Any, top_p: float) -> None:
    draws = 3000
    temperature = 1.5
    groups = sample(
        policy,
        tokenizer,
        ["the film"],
        samples_per_prompt=draws,
        max_new_tokens=1,
        temperature=temperature,
        top_p=top_p,
        batch_size=draws,
    )
    counts = Counter(tokens[0] for tokens in groups[0])
    with torch.no_grad():
        logits = policy(**tokenizer("the film", return_tensors="pt")).logits[:, -1] / temperature
    expected = (logits if top_p == 1 else TopPLogitsWarper(top_p)(None, logits)).softmax(-1)[0]
    frequencies = torch.tensor([counts[i] / draws for i in range(len(expected))])
    assert not frequencies[expected == 0].any()
    errors = (expected * (1 - expected) / draws).sqrt()
    assert ((frequencies - expected).abs() < 4.5 * errors + 2 / draws).all()
    assert (expected > 0.02).sum() > 3


def test_zero_temperature_takes_the_most_likely_token(policy: Any, tokenizer: Any) -> None:
    (tokens,) = sample(policy, tokenizer, ["the film"], temperature=0, max_new_tokens=3)[0]
    ids = tokenizer("the film")["input_ids"]
    for token in tokens:
        with torch.no_grad():
            assert token == int(policy(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def test_the_models_own_generation_settings_are_left_out_and_restored(tokenizer: Any) -> None:
    plain, penalised = sharpened(2), sharpened(2)
    penalised.generation_config = GenerationConfig(repetition_penalty=5.0, eos_token_id=tokenizer.eos_token_id)
    penalised.train()
    assert sample(penalised, tokenizer, temperature=0) == sample(plain, tokenizer, temperature=0)
    assert penalised.generation_config.repetition_penalty == 5.0
    assert penalised.training


def test_completions_end_at_the_end_token(tokenizer: Any) -> None:
    model = sharpened(2)
    word = tokenizer.convert_tokens_to_ids("film")
    with torch.no_grad():  # make the end token as likely as "film", and nothing else likely at all
        model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=True)
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(-1e4)
        model.lm_head.bias[[word, tokenizer.eos_token_id]] = 0.0
    groups = sample_completions(model, tokenizer, PROMPTS, max_new_tokens=2, samples_per_prompt=8, seed=0)
    completions = [completion for group in groups for completion in group]
    assert {c.token_ids[:-1] for c in completions if c.finished} <= {(), (word,)}
    assert all(c.token_ids[-1] == tokenizer.eos_token_id for c in completions if c.finished)
    assert all(c.token_ids == (word, word) and c.text == "film film" for c in completions if not c.finished)
    assert {c.finished for c in completions} == {True, False}


def test_order_of_prompts_and_progress(policy: Any, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    groups = sample_completions(
        policy,
        tokenizer,
        PROMPTS,
        max_new_tokens=2,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [list(group[0].prompt_ids) for group in groups] == tokenizer(PROMPTS)["input_ids"]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_conversations_go_through_the_chat_template(policy: Any, tokenizer: Any) -> None:
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}the{% endif %}"
    )
    (group,) = sample_completions(policy, chatty, [[{"role": "user", "content": "a plot"}]], max_new_tokens=2)
    assert tokenizer.decode(group[0].prompt_ids) == "a plot the"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"samples_per_prompt": 0}, "samples_per_prompt=0 must be at least 1"),
        ({"temperature": -1}, "temperature=-1 must be at least 0"),
        ({"top_p": 0}, "top_p=0 must be above 0"),
        ({"prompts": ["the", ""]}, "Prompt 1 has no tokens"),
    ],
)
def test_bad_settings_are_named(policy: Any, tokenizer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(policy, tokenizer, **settings)


def test_world_prompts_are_encoded_without_unknown_words(tokenizer: Any) -> None:
    prompts = World().prompts(20, seed=0)
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(prompts)["input_ids"])
