"""Masks and their gradients against the official code (values computed there, see the golden README)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsepo.masks import ActivationMask, LearnedMask, MaskInputs, import_published_mask
from sparsepo.masks.taps import record_sites

BETA = 0.8
CASES = {  # name: (official parameters, as which head), activation, λ_u, λ_d as the loss uses them
    "a_common": ({"common": "common"}, "relu", 0.0, 0.0),
    "b_indep": ({"rw": "rw", "kl": "kl"}, "relu", 0.0, 0.0),
    "c_indep_l1": ({"rw": "rw", "kl": "kl"}, "relu", 0.001, 0.002),
    "d_reward_only": ({"rw": "rw"}, "relu", 0.0, 0.0),
    "e_kl_only": ({"kl": "kl"}, "relu", 0.0, 0.0),
    "f_common_l1": ({"common": "common"}, "relu", 0.0005, 0.001),
    "g_common_mixed_sign_mixer": ({"mixed": "common"}, "relu", 0.0, 0.0),
    "h_common_noact": ({"mixed": "common"}, "none", 0.0, 0.0),
}


def official(golden: dict[str, Tensor], case: str) -> LearnedMask:
    names, activation, _, _ = CASES[case]
    state = {
        key.replace(f"maskparams.{theirs}.", f"anything.{head}_mask."): value
        for theirs, head in names.items()
        for key, value in golden.items()
        if key.startswith(f"maskparams.{theirs}.")
    }
    return import_published_mask(state, activation=activation)


def rows(golden: dict[str, Tensor], name: str, like: Tensor, response: Tensor) -> Tensor:
    """Per-token golden values ``name.{side}.{pair}`` laid out as the batch is."""
    out = torch.zeros_like(like)
    for row in range(8):
        out[row, response[row]] = golden[f"{name}.{('chosen', 'rejected')[row // 4]}.{row % 4}"]
    return out


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5 * max(theirs.abs().max().item(), 1e-30))


@pytest.mark.parametrize("case", CASES)
def test_learned_masks(
    case: str, golden: dict[str, Tensor], golden_states: list[Tensor], golden_batch: dict[str, Tensor]
) -> None:
    response = golden_batch["response_mask"]
    masks = official(golden, case).token_masks(MaskInputs(response, golden_states))
    for ours, letter in ((masks.reward.detach(), "u"), (masks.kl.detach(), "d")):
        if case in ("d_reward_only", "e_kl_only") and f"{case}.mask_{letter}.chosen.0" not in golden:
            assert torch.equal(ours, response.float())  # the side that is not masked
            assert letter == ("d" if case == "d_reward_only" else "u")
        else:
            close(ours, rows(golden, f"{case}.mask_{letter}", ours, response))


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_of_the_mask_head(
    case: str, golden: dict[str, Tensor], golden_states: list[Tensor], golden_batch: dict[str, Tensor]
) -> None:
    response = golden_batch["response_mask"]
    mask = official(golden, case)
    masks = mask.token_masks(MaskInputs(response, golden_states))
    ratio = rows(golden, "token.logratio", masks.reward.detach(), response)
    kl = rows(golden, "token.kl_ref_policy", ratio, response)
    score = (masks.reward * ratio + masks.kl * kl).sum(-1)  # (8,)
    _, _, l1_reward, l1_kl = CASES[case]
    penalty = (l1_reward * masks.reward.abs() + l1_kl * masks.kl.abs()).sum(-1)
    loss = -F.logsigmoid(BETA * (score[:4] - score[4:])) + penalty[:4] + penalty[4:]
    torch.testing.assert_close(loss.detach(), golden[f"{case}.loss"], rtol=1e-5, atol=0)
    loss.mean().backward()
    prefix = f"{case}.grad."
    gradients = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    expected = dict(import_published_mask(gradients).named_parameters())
    for name, parameter in mask.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, expected[name].detach())


# the official GPT-2 captures no MLP activation, so its "all" are the other three groups
ACTIVATION_CASES = {
    "mapo_all": ("attn", "resid", "logits"),
    "mapo_attn": ("attn",),
    "mapo_resid": ("resid",),
    "mapo_logits": ("logits",),
}


@pytest.mark.parametrize("case", ACTIVATION_CASES)
def test_activation_masks(
    case: str, golden: dict[str, Tensor], golden_reference: nn.Module, golden_batch: dict[str, Tensor]
) -> None:
    mask, response = ActivationMask(ACTIVATION_CASES[case]), golden_batch["response_mask"]
    with torch.no_grad(), mask.tap(golden_reference) as activations:
        golden_reference(golden_batch["input_ids"], attention_mask=golden_batch["attention_mask"])
    masks = mask.token_masks(MaskInputs(response, activations=activations))
    close(masks.reward, rows(golden, f"fp32stats.{case}.mask", masks.reward, response))
    torch.testing.assert_close(masks.kl, masks.reward, rtol=0, atol=0)


OFFICIAL_NAMES = {
    "attn.q": "attn.q",
    "attn.k": "attn.k",
    "attn.v": "attn.v",
    "attn.out": "attn.v_out",
    "resid.norm0": "resid.torso.input_ln_attn",
    "resid.after_attn": "resid.torso.delta_attn",
    "resid.norm1": "resid.torso.post_ln_attn",
    "resid.mlp": "resid.torso.delta_mlp",
    "resid.block": "resid.torso.post_mlp",
}


def test_every_tapped_site(
    golden: dict[str, Tensor], golden_reference: nn.Module, golden_batch: dict[str, Tensor]
) -> None:
    response = golden_batch["response_mask"]
    with torch.no_grad(), record_sites(golden_reference, ("attn", "resid", "logits")) as sites:
        golden_reference(golden_batch["input_ids"], attention_mask=golden_batch["attention_mask"])
    official_sites = {key.rsplit(".", 2)[0] for key in golden if key.startswith("mapo_all.actmean.")}
    names = {f"{ours}.{layer}": f"{theirs}_{layer}" for ours, theirs in OFFICIAL_NAMES.items() for layer in range(3)}
    names |= {"resid.embeddings": "resid.post_emb", "resid.final": "resid.post_ln_f", "logits": "logits"}
    assert {f"mapo_all.actmean.{theirs}" for theirs in names.values()} == official_sites
    assert set(names) == set(sites)
    for ours, theirs in names.items():
        values = torch.where(response, sites[ours][:, :-1], torch.zeros(()))
        close(values, rows(golden, f"mapo_all.actmean.{theirs}", values, response))
