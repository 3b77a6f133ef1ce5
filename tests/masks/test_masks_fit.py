"""Starting a learned mask from given (MaPO) masks."""

from __future__ import annotations

import pytest
import torch

from sparsepo.masks import LearnedMask, fit_to_targets

N, H, L = 300, 16, 3


def problem(seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """States whose mask is a teacher head's, rescaled to [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(N, H, generator=generator) for _ in range(L)]
    target = torch.relu(states[1] @ torch.randn(H, generator=generator) * 0.2 + 0.5 * states[2][:, 0])
    return states, target / target.max()


@pytest.mark.parametrize("sharing", ["common", "independent"])
def test_fit_follows_its_targets(sharing: str) -> None:
    states, target = problem()
    mask = LearnedMask(H, L, sharing=sharing, init="mapo").train()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    result = fit_to_targets(mask, torch.stack(states), target)
    assert torch.equal(torch.get_rng_state(), before)
    assert mask.training
    for head, quality in result.items():
        assert head in mask.heads
        assert quality.r2 > 0.7
        assert quality.correlation > 0.85
    values = mask([state[None] for state in states]).reward[0].detach()
    assert result[next(iter(result))].loss == pytest.approx(((values - target) ** 2).mean().item(), rel=1e-4)
    assert all(p.requires_grad and (p.grad is None or not p.grad.any()) for p in mask.parameters())


def test_fit_is_reproducible_and_starts_from_ones_whatever_the_mask_was() -> None:
    states, target = problem()
    fitted = []
    for shift in (0.0, 0.3):
        mask = LearnedMask(H, L, init="mapo", seed=5, dropout=0.5)
        with torch.no_grad():
            mask.heads["shared"].layer_weight.add_(shift)
        fit_to_targets(mask, states, target, steps=20)
        fitted.append(mask.state_dict())
    for name, value in fitted[0].items():
        assert torch.equal(value, fitted[1][name])


def test_heads_may_have_targets_of_their_own() -> None:
    states, target = problem()
    mask = LearnedMask(H, L, sharing="independent", init="mapo")
    result = fit_to_targets(mask, states, target, target_kl=1 - target)
    masks = mask([state[None] for state in states])
    assert min(result["reward"].r2, result["kl"].r2) > 0.7
    assert torch.corrcoef(torch.stack([masks.reward[0], masks.kl[0]]).detach())[0, 1] < -0.7


def test_constant_target_is_met() -> None:
    states, _ = problem()
    result = fit_to_targets(LearnedMask(H, L, init="mapo"), states, torch.full((N,), 0.3))["shared"]
    assert result.loss < 1e-3
    assert result.zeros == 0


def test_frozen_mask_stays_frozen() -> None:
    states, target = problem()
    mask = LearnedMask(H, L, init="mapo").requires_grad_(False)
    with torch.no_grad():
        fit_to_targets(mask, states, target, steps=3)
    assert not any(p.requires_grad for p in mask.parameters())


def test_bad_inputs_are_named() -> None:
    states, target = problem()
    mask = LearnedMask(H, L, init="mapo")
    with pytest.raises(ValueError, match="no tokens"):
        fit_to_targets(mask, [s[:0] for s in states], target[:0])
    with pytest.raises(ValueError, match=r"shape \(299,\), but there are 300"):
        fit_to_targets(mask, states, target[1:])
    with pytest.raises(ValueError, match="negative or not finite"):
        fit_to_targets(mask, states, target - 1)
    with pytest.raises(ValueError, match="no KL head"):
        fit_to_targets(mask, states, target, target_kl=target)
    with pytest.raises(ValueError, match="num_layers=3"):
        fit_to_targets(mask, states[:2], target)
