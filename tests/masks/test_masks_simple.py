"""Dense, random and data masks, and the noise and statistics that all kinds share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo.masks import MASKS, DataMask, DenseMask, MaskInputs, RandomMask, build_mask, mask_statistics
from tests.masks.models import noise_of


def test_dense_masks_are_ones(inputs: MaskInputs) -> None:
    masks = DenseMask().token_masks(inputs)
    assert torch.equal(masks.reward, inputs.response_mask.float())
    assert torch.equal(masks.kl, inputs.response_mask.float())


class TestRandom:
    def test_fixed_for_ever_per_token(self, inputs: MaskInputs) -> None:
        mask = RandomMask(seed=3)
        first = mask.token_masks(inputs)
        other_run = replace(inputs, noise=replace(inputs.noise, seed=1234, step=99))
        assert torch.equal(first.reward, mask.token_masks(other_run).reward)
        assert torch.equal(first.reward, first.kl)
        assert not torch.equal(first.reward, RandomMask(seed=4).token_masks(inputs).reward)

    def test_uniform_with_exact_zeros(self) -> None:
        response = torch.ones(100, 200, dtype=torch.bool)
        values = RandomMask(sparsity=0.3).token_masks(MaskInputs(response, noise=noise_of(response))).reward
        kept = values[values > 0]
        assert (values == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
        assert values.max() < 1
        assert kept.mean().item() == pytest.approx(0.5, abs=0.02)  # what is zeroed does not depend on the value
        assert torch.histc(kept, 10, 0, 1).min() > 0.08 * len(kept)

    def test_independent_masks_and_mask_on(self, inputs: MaskInputs) -> None:
        masks = RandomMask(sharing="independent", sparsity=0.2).token_masks(inputs)
        assert not torch.equal(masks.reward, masks.kl)
        only = RandomMask(mask_on="kl").token_masks(inputs)
        assert torch.equal(only.reward, inputs.response_mask.float())

    def test_needs_to_know_the_tokens(self, inputs: MaskInputs) -> None:
        with pytest.raises(ValueError, match=r"MaskInputs\.noise"):
            RandomMask().token_masks(replace(inputs, noise=None))

    @pytest.mark.parametrize("arguments", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"seed": "a"}, {"sharing": "x"}])
    def test_bad_settings(self, arguments: dict[str, object]) -> None:
        name, value = next(iter(arguments.items()))
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            RandomMask(**arguments)


class TestData:
    def test_weights_are_the_masks(self, inputs: MaskInputs) -> None:
        weights = torch.rand(4, 8) * 3
        masks = DataMask().token_masks(replace(inputs, weights=weights.double()))
        assert DataMask.needs_weights
        assert masks.reward.dtype == torch.float32
        torch.testing.assert_close(masks.kl, weights * inputs.response_mask)

    @pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf")])
    def test_bad_weights_are_named_with_row_and_token(self, bad: float, inputs: MaskInputs) -> None:
        weights = torch.ones(4, 8)
        weights[3, 0] = bad  # no response token: not read
        DataMask().token_masks(replace(inputs, weights=weights))
        weights[1, 4] = bad
        with pytest.raises(ValueError, match=r"row 1, token 4"):
            DataMask().token_masks(replace(inputs, weights=weights))

    def test_missing_or_misshapen_weights(self, inputs: MaskInputs) -> None:
        with pytest.raises(ValueError, match="chosen_weights"):
            DataMask().token_masks(inputs)
        with pytest.raises(ValueError, match=r"\(4, 9\)"):
            DataMask().token_masks(replace(inputs, weights=torch.ones(4, 9)))


class TestRegistry:
    def test_kinds(self) -> None:
        assert set(MASKS) == {"learned", "activation", "dense", "random", "data"}
        assert isinstance(build_mask("random", sparsity=0.5), RandomMask)
        with pytest.raises(ValueError, match="mask='sparse' is unknown; choose one of learned"):
            build_mask("sparse")
        with pytest.raises(ValueError, match="A 'dense' mask has no setting dropout"):
            build_mask("dense", dropout=0.1)

    @pytest.mark.parametrize("kind", ["dense", "random", "data", "activation"])
    def test_kinds_without_parameters_are_not_trained(self, kind: str) -> None:
        assert not build_mask(kind).is_trainable
        assert build_mask("learned", hidden_size=4, num_layers=1).is_trainable


@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**6),
    left=st.integers(0, 4),
    right=st.integers(0, 4),
    row=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_noise_depends_on_the_token_not_on_batch_or_padding(
    seed: int, step: int, left: int, right: int, row: int
) -> None:
    response = torch.ones(5, 6, dtype=torch.bool)
    noise = noise_of(response, seed, step)
    whole = noise.uniform(0)
    alone = replace(noise, row=noise.row[row : row + 1], position=F.pad(noise.position[row : row + 1], (left, right)))
    assert torch.equal(alone.uniform(0)[0, left : left + 6], whole[row])
    assert whole.min() >= 0
    assert whole.max() < 1
    for other in (noise.uniform(1), noise.at_step(step + 1).uniform(0), replace(noise, seed=seed + 1).uniform(0)):
        assert not torch.equal(other, whole)


def test_statistics_count_response_tokens_only(inputs: MaskInputs) -> None:
    mask = torch.full((4, 8), 5.0)
    mask[0, 3:5] = 0.0
    mask[2, 5] = 0.0
    found = {name: value.item() for name, value in mask_statistics(mask, inputs.response_mask).items()}
    # 4 + 8 + 1 response tokens; the last row has none and is no sequence; row 2 keeps no token
    assert found == {"sum": 50.0, "zeros": 3.0, "tokens": 13.0, "dead": 1.0, "sequences": 3.0, "max": 5.0}
    halves = mask_statistics(mask, inputs.response_mask, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert halves["tokens"].item() == 5.0
    assert halves["sum"].item() == 10.0
