"""Per-pair losses, rewards and gradients against values computed with the official SparsePO and TDPO code."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparsepo.masks import DenseMask, LearnedMask, import_published_mask
from sparsepo.objectives import get_objective
from sparsepo.scoring import dense_pair_scores
from tests.support import collated

BETA = 0.8
SIDES = ("chosen", "rejected")

# case → (mask parameters, sharing, mask_on, effective L1)
CASES = {
    "a_common": ("common", "common", "both", {}),
    "b_indep": ("rw kl", "independent", "both", {}),
    "c_indep_l1": ("rw kl", "independent", "both", {"l1_reward": 0.001, "l1_kl": 0.002}),
    "d_reward_only": ("rw", "independent", "reward", {}),
    "e_kl_only": ("kl", "independent", "kl", {}),
    "f_common_l1": ("common", "common", "both", {"l1_reward": 0.0005, "l1_kl": 0.001}),
    "g_common_mixed_sign_mixer": ("mixed", "common", "both", {}),
    "h_common_noact": ("mixed", "common", "both", {}),
}
OFFICIAL_NAME = {"common": "common_mask", "mixed": "common_mask", "rw": "rw_mask", "kl": "kl_mask"}


@pytest.fixture(scope="module")
def golden(golden_folder):
    return load_file(golden_folder / "gpt2" / "golden.safetensors")


@pytest.fixture(scope="module")
def models(golden_folder):
    folder = golden_folder / "gpt2"
    return {
        name: AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        for name in ("policy", "reference")
    }


@pytest.fixture(scope="module")
def batch(golden_folder):
    content = json.loads((golden_folder / "batch.json").read_text())
    pairs = content["pairs"] if isinstance(content, dict) and "pairs" in content else content
    return collated([(p["prompt_ids"], p["chosen_ids"], p["rejected_ids"]) for p in pairs])


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 3e-5) -> None:
    """Within ``tolerance`` of the largest entry."""
    error = (actual.detach().float() - expected.float()).abs().max()
    assert error <= tolerance * expected.abs().max().clamp(min=1e-12), f"off by {error} of {expected.abs().max()}"


def relative(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    error = ((actual.detach() - expected) / expected.abs().clamp(min=1e-12)).abs().max()
    assert error <= tolerance, f"relative error {error}"


def official_mask(golden, case: str):
    names = CASES[case][0]
    state = {
        f"{OFFICIAL_NAME[name]}.{key.removeprefix(f'maskparams.{name}.')}": value
        for name in names.split()
        for key, value in golden.items()
        if key.startswith(f"maskparams.{name}.")
    }
    return import_published_mask(state, activation="none" if case.startswith("h_") else "relu")


def policy_gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare_gradients(golden, prefix: str, gradients: dict[str, torch.Tensor]) -> int:
    compared = 0
    for key, expected in golden.items():
        name = key.removeprefix(f"{prefix}.grad.")
        if key.startswith(f"{prefix}.grad.transformer"):
            close(gradients[name], expected)
            compared += 1
    return compared


@pytest.mark.parametrize("case", CASES)
def test_sparsepo_case(golden, models, batch, case):
    mask = official_mask(golden, case)
    assert isinstance(mask, LearnedMask)
    policy = models["policy"]
    policy.zero_grad()
    scores = dense_pair_scores(policy, models["reference"], batch, mask)
    objective = get_objective("sparsepo", beta=BETA, **CASES[case][3])
    result = objective(scores)
    relative(result.loss, golden[f"{case}.loss"])
    for side in SIDES:
        expected = BETA * (golden[f"{case}.wlogratio_{side}"] + golden[f"{case}.wkl_{side}"])
        close(getattr(result, f"{side}_rewards"), expected)
        tokens = getattr(scores, side)
        for index in range(4):
            keep = tokens.response_mask[index]
            ones = torch.ones(int(keep.sum()))  # the side that a one-sided mask leaves alone
            close(tokens.reward_mask[index][keep], golden.get(f"{case}.mask_u.{side}.{index}", ones))
            close(tokens.kl_mask[index][keep], golden.get(f"{case}.mask_d.{side}.{index}", ones))
            close(tokens.kl[index][keep], golden[f"token.kl_ref_policy.{side}.{index}"])
            close(tokens.policy_logps[index][keep], golden[f"token.policy_logp.{side}.{index}"])
            close(tokens.ref_logps[index][keep], golden[f"token.ref_logp.{side}.{index}"])
            close(tokens.log_ratios()[index][keep], golden[f"token.logratio.{side}.{index}"])
    result.loss.mean().backward()
    relative(result.loss.mean(), golden[f"{case}.loss_mean"])
    compare_gradients(golden, case, policy_gradients(policy))
    norm = torch.stack([g.norm() for g in policy_gradients(policy).values()]).norm()
    close(norm, golden[f"{case}.grad_norm_policy"])
    compare_mask_gradients(golden, case, mask)


def compare_mask_gradients(golden, case: str, mask: LearnedMask) -> None:
    heads = {"common_mask": "shared", "rw_mask": "reward", "kl_mask": "kl"}
    norms, compared = [p.grad.norm() for p in mask.parameters()], 0
    for official, ours in heads.items():
        prefix = f"{case}.grad.{official}."
        if not any(key.startswith(prefix) for key in golden):
            continue
        if ours not in dict(mask.heads.named_children()):
            ours = next(iter(dict(mask.heads.named_children())))
        head = mask.heads[ours]
        layers = range(len(head.layer_bias))
        weight = torch.cat([golden[f"{prefix}w_per_layer.{i}.w.weight"] for i in layers])
        bias = torch.cat([golden[f"{prefix}w_per_layer.{i}.w.bias"] for i in layers])
        close(head.layer_weight.grad, weight)
        close(head.layer_bias.grad, bias)
        close(head.mixer_weight.grad, golden[f"{prefix}mixer.weight"].reshape(-1))
        close(head.norm.weight.grad, golden[f"{prefix}layer_norm.weight"])
        close(head.norm.bias.grad, golden[f"{prefix}layer_norm.bias"])
        compared += 1
    assert compared >= 1
    close(torch.stack(norms).norm(), golden[f"{case}.grad_norm_mask"])


BASELINES = {
    "tdpo1": ("tdpo1", {"beta": BETA}),
    "tdpo2": ("tdpo2", {"beta": BETA, "alpha": 0.5}),
    "dpo": ("dpo", {"beta": BETA}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 0.5}),
    "dpop": ("dpop", {"beta": BETA, "lam": 5.0}),
    "mapo_uniform": ("mapo", {"beta": BETA}),
}


@pytest.mark.parametrize("case", BASELINES)
def test_baseline_case(golden, models, batch, case):
    name, settings = BASELINES[case]
    policy = models["policy"]
    policy.zero_grad()
    mask = DenseMask() if name == "mapo" else None
    scores = dense_pair_scores(policy, models["reference"], batch, mask)
    result = get_objective(name, **settings)(scores)
    relative(result.loss, golden[f"{case}.loss"])
    result.loss.mean().backward()
    assert compare_gradients(golden, case, policy_gradients(policy)) >= 1
    norm = torch.stack([g.norm() for g in policy_gradients(policy).values()]).norm()
    close(norm, golden[f"{case}.grad_norm_policy"])
    for side in SIDES:
        rewards = getattr(result, f"{side}_rewards")
        if name == "dpo":
            close(rewards, golden[f"dpo.{side}_rewards"])
        elif name == "tdpo1":
            close(rewards, golden[f"tdpo1.{side}_rewards"])
            close(rewards, BETA * (golden[f"tdpo1.{side}_logratio"] + golden[f"tdpo1.{side}_seqkl"]))
        elif name == "tdpo2":  # TDPO's code logs β(r + K); ours follow the loss: β(r + αK)
            close(rewards, BETA * (golden[f"tdpo1.{side}_logratio"] + 0.5 * golden[f"tdpo1.{side}_seqkl"]))
