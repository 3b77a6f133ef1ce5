"""Rows [prompt | chosen | rejected] are attended in two calls, which compute what one call over the row would."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import disable_dropout_in_model

from sparsepo.training import prefix_attention, prefix_routes
from sparsepo.training.prefix import PrefixSharing, estimated_gain
from tests.support import collated, tiny_model

PROMPT = list(range(5, 17))


def attended(monkeypatch):
    """(query, key) tokens of every SDPA call from here on."""
    shapes = []
    whole = torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, *args, **kwargs):
        shapes.append((query.shape[2], key.shape[2]))
        return whole(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return shapes


@pytest.mark.parametrize("queries", [128, 2])
@pytest.mark.parametrize("prompts", [(12, 12), (12, 7)], ids=["prompts alike", "prompts unlike"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_rows_are_attended_in_two_calls_with_the_values_of_one(monkeypatch, kind, prompts, queries):
    """Checkpointing recomputes the same calls; without the mark the whole row gives the same. Long responses go in blocks
    of queries."""
    monkeypatch.setattr(prefix_attention, "_QUERIES", queries)
    backbone = tiny_model(kind).base_model.train()
    disable_dropout_in_model(backbone)
    backbone.activation_checkpointing_enable({"use_reentrant": False})
    batch = collated([([5 + i for i in range(n)], [20, 21, 22], [30, 31]) for n in prompts])
    weights = torch.randn(*batch["input_ids"].shape, 1, generator=torch.Generator().manual_seed(0))
    weights = weights * batch["completion_mask"][..., None]

    def result():
        backbone.zero_grad()
        states = PrefixSharing("on").run(backbone, batch).last_hidden_state
        shapes = attended(monkeypatch)
        (states * weights).sum().backward()
        found = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
        return {**found, "states": states.detach() * batch["completion_mask"][..., None]}, set(shapes)

    split, calls = result()
    if queries > 3:
        assert calls == {(12, 12), (3, 15)}
    else:  # of a block of one query transformers folds grouped heads into the queries
        assert {keys for _, keys in calls} == {12, 14, 15}
    monkeypatch.setattr(prefix_routes, "splits_rows", lambda backbone: False)
    whole, calls = result()
    assert calls == {(18, 18)}
    for name, value in whole.items():
        assert (split[name] - value).abs().max() <= 2e-5 * value.abs().max().clamp(min=1), name


def test_models_without_shared_rows_attend_as_ever(monkeypatch):
    """Once rows have been split, a mask of the same size without the mark goes through in one call."""
    backbone = tiny_model("llama").base_model
    PrefixSharing("on").run(backbone, collated([(PROMPT, [20, 21, 22], [30, 31])] * 2))
    shapes = attended(monkeypatch)
    mask = torch.zeros(2, 1, 9, 9)
    backbone(input_ids=torch.full((2, 9), 7), attention_mask=mask)
    assert set(shapes) == {(9, 9)}


def test_split_rows_are_estimated_to_gain_with_long_responses():
    shape = (1024, 512, 512)
    assert estimated_gain("row", 2, shape, 768) < 1.15
    assert estimated_gain("row", 2, shape, 768, split=True) > 1.28
