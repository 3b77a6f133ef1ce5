"""What must hold on every architecture: true scores, padding without effect, a model that is its own after training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sparsepo import LearnedMask
from sparsepo.scoring import dense_pair_scores
from sparsepo.scoring.dense import block_outputs
from sparsepo.training.step import MASK_ATTRIBUTE
from tests.support import (
    _GATED,
    ARCHITECTURES,
    collated,
    perturbed,
    tiny_model,
)

from .architectures import (
    EVERY,
    SCORES,
    assert_same_scores,
    batch_of,
    trainer_of,
)
from .matrix import MASKS

# Architectures beyond the matrix whose logits are scaled: logits · logit_scale, logits / logits_scaling
SCALED: dict[str, dict[str, Any]] = {
    "cohere": {**_GATED, "logit_scale": 0.25},
    "granite": {**_GATED, "logits_scaling": 4.0},
}


# ---- scores ----


def scaled_model(architecture: str) -> nn.Module:
    """A model whose logits are a few units large, so that a scale or cap left out moves every score."""
    if architecture not in SCALED:
        # an enlarged head that is also the embedding would drown what the blocks add
        return tiny_model(architecture, head_scale=40.0, tie_word_embeddings=False)
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SCALED[architecture], tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40.0)
    return model


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SCALED])
def test_scores_are_those_of_the_models_own_logits(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    reference = scaled_model(architecture)
    policy = perturbed(reference)
    mask = LearnedMask.for_model(reference, sharing="independent", init="ones")
    trainer = trainer_of(policy, tmp_path, rows, ref_model=copy.deepcopy(reference), masker=mask)
    batch = batch_of(trainer, rows)
    scores = trainer.score(batch)
    with torch.no_grad():
        expected = dense_pair_scores(policy.eval(), reference, batch, mask)
    assert_same_scores(scores, expected, SCORES)
    keep = scores.chosen.response_mask
    assert float(scores.chosen.kl[keep].mean()) > 1e-2
    assert float(scores.chosen.ref_logps[keep].std()) > 0.3  # the logits are not near zero, where any head passes


@pytest.mark.parametrize("architecture", ["gemma2", *SCALED])
def test_the_scores_above_depend_on_scale_and_cap(architecture: str, rows: Dataset) -> None:
    model = scaled_model(architecture).eval()
    ids = torch.tensor([rows[0]["prompt_ids"] + rows[0]["chosen_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        plain = F.linear(model.base_model(input_ids=ids).last_hidden_state, model.get_output_embeddings().weight)
    assert float((logits.log_softmax(-1) - plain.log_softmax(-1)).abs().mean()) > 0.1


@EVERY
def test_hidden_states_are_the_outputs_of_the_blocks(architecture: str) -> None:
    model = tiny_model(architecture).eval()
    ids = torch.randint(4, 99, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False)
    states = block_outputs(outputs.hidden_states)
    assert len(states) == model.config.num_hidden_layers == 2
    torch.testing.assert_close(states[-1], outputs.last_hidden_state, rtol=0, atol=0)
    assert not torch.allclose(states[0], states[1])


def test_scores_of_a_model_that_projects_its_last_state(tmp_path: Path, rows: Dataset) -> None:
    """As OPT-350m: the head reads another width than the blocks have. A learned mask cannot, and says so."""
    reference = tiny_model("opt", word_embed_proj_dim=16, head_scale=10.0)
    policy = perturbed(reference)
    trainer = trainer_of(policy, tmp_path, rows, copy.deepcopy(reference), objective="tdpo1")
    batch = batch_of(trainer, rows)
    with torch.no_grad():
        expected = dense_pair_scores(policy.eval(), reference, batch)
    assert_same_scores(trainer.score(batch), expected, ("policy_logps", "ref_logps", "kl"))
    with pytest.raises(ValueError, match="word_embed_proj_dim=16"):
        trainer_of(reference, tmp_path, rows)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3_moe", "mamba"])
def test_a_mask_can_start_from_the_activations(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    """Whatever groups of activations an architecture has, a head fitted to them resembles their mask."""
    settings = {"mask_init": "mapo", "mask_sharing": "independent", "mask_init_pairs": 8, "learning_rate": 1e-6}
    trainer = trainer_of(tiny_model(architecture), tmp_path, rows, **settings)
    trainer.train()
    assert set(trainer.start_fit) == {"reward", "kl"}
    assert all(fit.correlation > 0.8 for fit in trainer.start_fit.values())
    mapo = trainer_of(tiny_model(architecture), tmp_path, rows, objective="mapo")
    batch = batch_of(mapo, rows)
    scores, target = trainer.score(batch).chosen, mapo.score(batch).chosen
    keep = scores.response_mask
    pair = torch.stack([scores.reward_mask[keep], target.reward_mask[keep]])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.8


# ---- padding ----


def padded(batch: dict[str, Any], left: int = 0, right: int = 0) -> dict[str, Any]:
    """More padding on either side of all rows."""
    return {name: F.pad(value, (left, right)) for name, value in batch.items()}


@EVERY
@pytest.mark.parametrize("kind", ["learned_independent", "random", "activation"])
def test_padding_changes_nothing(architecture: str, kind: str, tmp_path: Path, rows: Dataset) -> None:
    """Left padding works in all, Mamba included: its state stays zero while the attention mask is."""
    reference = tiny_model(architecture, head_scale=20.0)
    trainer = trainer_of(perturbed(reference), tmp_path, rows, ref_model=reference, **MASKS[kind])
    pairs = [([5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]), ([17, 18], [19, 20, 21, 22, 23, 24], [9, 8])]
    plain = collated(pairs)
    scores = trainer.score(plain)
    assert float(scores.chosen.reward_mask[scores.chosen.response_mask].std()) > 0
    for changed in (padded(plain, right=5), collated(pairs, side="left"), padded(collated(pairs, side="left"), left=6)):
        assert_same_scores(
            scores, trainer.score(changed), SCORES, rtol=1e-3, atol=1e-4 if kind == "activation" else 2e-5
        )


# ---- after training ----


@EVERY
def test_the_model_is_its_own_after_training(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    model = tiny_model(architecture)
    trainer_of(model, tmp_path, rows).train()
    assert "forward" not in model.__dict__
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in zeroed.parameters():
            parameter.zero_()
        ids = torch.tensor([[5, 6, 7, 8]])
        assert float(zeroed.eval()(input_ids=ids).logits.abs().max()) == 0
        assert float(model.eval()(input_ids=ids).logits.abs().max()) > 0
        generated = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False
        )
    assert generated.shape[1] > 4
    # a second trainer starts from the trained policy, with a mask of its own or with none
    first = {name: value.clone() for name, value in model.state_dict().items()}
    second = trainer_of(model, tmp_path / "second", rows)
    batch = batch_of(second, rows)
    scores = second.score(batch)
    assert_same_scores(scores, second.score(batch), SCORES, rtol=0, atol=0)
    assert float((scores.chosen.policy_logps - scores.chosen.ref_logps).abs().max()) < 1e-5
    second.train()
    assert float(second.score(batch).chosen.kl.max()) > 1e-5
    assert any(not torch.equal(value, first[name]) for name, value in model.state_dict().items())
    third = trainer_of(model, tmp_path / "third", rows, objective="tdpo1")
    third.train()
    assert not [name for name, _ in third.model.named_parameters() if MASK_ATTRIBUTE in name]
    assert not [name for name, _ in third.ref_model.named_parameters() if MASK_ATTRIBUTE in name]
