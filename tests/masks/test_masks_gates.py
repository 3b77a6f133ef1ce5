"""Gates: range, exact zeros, flatness, rows that do not touch each other, evaluation without noise, what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsepo.masks import LearnedMask, MaskInputs, fit_to_targets, load_mask, save_mask
from sparsepo.masks.gates import GATES, Gate, HardConcrete, build_gate
from sparsepo.masks.responses import Responses
from sparsepo.masks.simplex import shifted_power
from tests.masks.models import noise_of

NAMES = tuple(GATES)
PER_RESPONSE = ("normalised", "topk", "sparsemax", "entmax")
# the largest value; None: no bound but the number of tokens, or none
UPPER = {"clamped": 1, "sigmoid": 1, "binary": 1, "hard_concrete": 1, "gumbel_sigmoid": 1}


def responses(lengths: list[int]) -> Responses:
    return Responses(
        torch.tensor([row for row, length in enumerate(lengths) for _ in range(length)], dtype=torch.int64)
    )


def numbers(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Around the range that a start from ones gives, and on both sides of every threshold."""
    return 0.4 + torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniforms(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def mask_of(gate: str, **arguments: Any) -> LearnedMask:
    """A mask whose numbers x lie on both sides of every gate's threshold."""
    mask = LearnedMask(8, 3, init="ones", gate=gate, **arguments)
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        for head in mask.mask_heads():
            head.offset.fill_(0.5)
    return mask


rows_of_tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@pytest.mark.parametrize("name", NAMES)
@given(
    lengths=rows_of_tokens, seed=st.integers(0, 10_000), training=st.booleans(), scale=st.sampled_from([0.01, 1, 30])
)
@settings(max_examples=25, deadline=None)
def test_range_and_mean(name: str, lengths: list[int], seed: int, training: bool, scale: float) -> None:
    gate, own = build_gate(name), responses(lengths)
    x = 1 + scale * (numbers(sum(lengths), seed) - 1)
    mask = gate(x, own, uniforms(len(x)) if training and gate.stochastic else None)
    assert mask.shape == x.shape
    assert torch.isfinite(mask).all()
    assert (mask >= 0).all()
    assert (mask <= UPPER.get(name, torch.inf)).all()
    for row, length in enumerate(lengths):
        values = mask[own.rows == row]
        if gate.mean_one and length:
            if bool((x[own.rows == row] > 0).any()) or name != "normalised":
                assert values.mean().item() == pytest.approx(1, abs=1e-9)
            else:
                assert not values.any()
        if name == "topk":
            assert int((values > 0).sum()) <= max(1, int(0.2 * length + 0.5))
    if gate.closes_at is not None and not training:
        clear = (x - gate.closes_at).abs() > 1e-6
        assert torch.equal((mask == 0)[clear], (x <= gate.closes_at)[clear])


def trained_inputs(name: str) -> tuple[LearnedMask, MaskInputs]:
    generator = torch.Generator().manual_seed(4)
    states = [torch.randn(6, 25, 8, generator=generator) for _ in range(3)]
    response = torch.rand(6, 24, generator=generator) > 0.3
    return mask_of(name, gate_temperature=None).train(), MaskInputs(response, states, noise=noise_of(response))


@pytest.mark.parametrize("name", NAMES)
def test_flatness_at_zero_is_as_declared(name: str) -> None:
    """Leaving the tokens with a zero mask out of the loss changes no gradient; where not declared, it does."""
    mask, inputs = trained_inputs(name)
    gradients = []
    for keep_all in (True, False):
        mask.zero_grad()
        values = mask.token_masks(inputs).reward
        weight = torch.randn(values.shape, generator=torch.Generator().manual_seed(5))
        if not keep_all:
            weight = torch.where(values == 0, torch.zeros_like(weight), weight)
        (values * weight).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in mask.parameters()]))
    zeros = int((values[inputs.response_mask] == 0).sum())
    assert (zeros > 3) == (name != "sigmoid")
    assert zeros < int(inputs.response_mask.sum())
    assert gradients[0].abs().max() > 1e-3
    assert mask.flat_at_zero == torch.equal(*gradients) or (
        mask.flat_at_zero and torch.allclose(*gradients, rtol=1e-5, atol=1e-6)
    )
    if not mask.flat_at_zero:
        assert not torch.allclose(*gradients, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), lengths=st.lists(st.integers(0, 7), min_size=2, max_size=5))
@settings(max_examples=10, deadline=None)
def test_masks_do_not_depend_on_batching_or_padding(name: str, data: st.DataObject, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    states = [torch.randn(len(lengths), 9, 8, generator=generator) for _ in range(3)]
    response = torch.zeros(len(lengths), 8, dtype=torch.bool)
    for row, length in enumerate(lengths):
        response[row, 1 : 1 + length] = True
    mask = mask_of(name, dropout=0.2, sharing="independent").train()
    noise = noise_of(response)
    whole = mask.token_masks(MaskInputs(response, states, noise=noise))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    for row in data.draw(st.permutations(range(len(lengths)))):
        one = slice(row, row + 1)
        alone = mask.token_masks(
            MaskInputs(
                F.pad(response[one], (left, right)),
                [F.pad(state[one], (0, 0, left, right), value=9.0) for state in states],
                noise=replace(noise, row=noise.row[one], position=F.pad(noise.position[one], (left, right))),
            )
        )
        for ours, theirs in ((alone.reward, whole.reward), (alone.kl, whole.kl)):
            torch.testing.assert_close(ours[0, left : left + 8], theirs[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_training_draws_only_where_declared(name: str) -> None:
    mask, inputs = trained_inputs(name)
    later = replace(inputs, noise=inputs.noise.at_step(9))
    trained = [mask.token_masks(at).reward for at in (inputs, inputs, later)]
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2]) is not mask.gate.stochastic
    mask.eval()
    state = torch.get_rng_state()
    first = mask.token_masks(inputs).reward
    assert torch.equal(first, mask.token_masks(later).reward)
    assert torch.equal(first, mask.token_masks(replace(inputs, noise=None)).reward)
    assert torch.equal(torch.get_rng_state(), state)
    if mask.gate.stochastic:
        assert not torch.equal(first, trained[0])


@pytest.mark.parametrize("name", NAMES)
def test_one_token_all_masked_and_empty_responses(name: str) -> None:
    gate = build_gate(name)
    one = gate(torch.tensor([1.0], requires_grad=True), responses([1]))
    assert 0.5 < one.item() <= 1.001  # a token alone stays about as it is
    shut = torch.full((4,), -3.0, requires_grad=True)
    masks = gate(shut, responses([4]))
    masks.sum().backward()
    assert torch.isfinite(shut.grad).all()
    if name in ("sparsemax", "entmax"):  # these redistribute whatever the level
        torch.testing.assert_close(masks.detach(), torch.ones(4))
    else:
        assert float(masks.detach().max()) < 1e-3
    nothing = torch.zeros(0, requires_grad=True)
    gate(nothing, responses([])).sum().backward()
    assert nothing.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_response_tokens_gives_zero_gradients_not_none(name: str) -> None:
    mask, inputs = trained_inputs(name)
    masks = mask.token_masks(replace(inputs, response_mask=torch.zeros_like(inputs.response_mask)))
    (masks.reward.sum() + masks.kl.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in mask.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_states_and_autocast_leave_the_gate_in_float32(name: str) -> None:
    mask, inputs = trained_inputs(name)
    mask.eval()
    half = [state.to(torch.bfloat16) for state in inputs.hidden_states]
    expected = mask.token_masks(replace(inputs, hidden_states=[state.float() for state in half]))
    with torch.autocast("cpu", torch.bfloat16):
        masks = mask.token_masks(replace(inputs, hidden_states=half))
    assert masks.reward.dtype == torch.float32
    assert torch.equal(masks.reward, expected.reward)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_from_ones_is_nearly_uniform(name: str) -> None:
    """From ones every gate begins as TDPO1 with about the same β, top-k on its share of the tokens."""
    mask = LearnedMask(96, 6, init="ones", gate=name).eval()
    states = torch.randn(6, 4, 30, 96, generator=torch.Generator().manual_seed(0))
    values = mask(states).reward
    if name == "topk":
        assert (values > 0).float().mean().item() == pytest.approx(0.2)
        values = values[values > 0]
    assert 0.8 < values.mean().item() < 1.2


@pytest.mark.parametrize("name", NAMES)
def test_the_start_from_activation_masks_works_with_every_gate(name: str) -> None:
    """The head imitates the targets; whatever the gate makes of them, it keeps their order."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(200, 16, generator=generator) for _ in range(3)]
    target = torch.relu(states[1][:, 0] + 0.5 * states[2][:, 0])
    target = target / target.max()
    mask = LearnedMask(16, 3, init="mapo", gate=name).eval()
    quality = fit_to_targets(mask, states, target, steps=150)["shared"]
    assert quality.r2 > 0.7
    values = mask([state[None] for state in states]).reward[0].detach()
    assert float(values[target > 0.5].mean()) > 2 * float(values[target == 0].mean())


@pytest.mark.parametrize("name", NAMES)
def test_saved_is_loaded(name: str, tmp_path: Any) -> None:
    mask, inputs = trained_inputs(name)
    for head in mask.mask_heads():
        head.offset.fill_(0.25)
        head.scale.fill_(1.5)
    save_mask(mask, tmp_path)
    loaded = load_mask(tmp_path)
    assert loaded.settings() == mask.settings()
    assert loaded.settings()["gate"] == name
    assert torch.equal(loaded.token_masks(inputs).reward, mask.eval().token_masks(inputs).reward)
    assert loaded.flat_at_zero == mask.flat_at_zero


def test_files_from_before_there_were_gates_still_load(tmp_path: Any) -> None:
    import json

    from safetensors.torch import load_file, save_file

    mask = LearnedMask(8, 3, init="ones")
    folder = save_mask(mask, tmp_path)
    content = json.loads((folder / "mask.json").read_text())
    for name in ("gate", "gate_temperature", "topk_share"):
        del content["settings"][name]
    (folder / "mask.json").write_text(json.dumps(content))
    tensors = load_file(folder / "mask.safetensors")
    old = {
        key: value
        for key, value in tensors.items()
        if key.rsplit(".", 1)[1] not in dict(mask.heads["shared"].named_buffers())
    }
    assert len(old) == len(tensors) - 4
    save_file(old, folder / "mask.safetensors")
    loaded = load_mask(tmp_path)
    assert loaded.gate.name == "relu"
    for name, value in mask.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    fresh = LearnedMask(8, 3)
    fresh.load_state_dict(old)
    assert torch.equal(fresh.heads["shared"].scale, torch.ones(()))


# ---- single gates ----


def simplex_projection(z: Tensor, alpha: float) -> Tensor:
    """argmax_p p·z + H_α(p) by bisection on its threshold, one row, float64 (Peters et al. 2019, eq. 11)."""
    scaled = (alpha - 1) * z
    low, high = scaled.max() - 1, scaled.max() - len(z) ** (1 - alpha)
    for _ in range(200):
        middle = (low + high) / 2
        total = (scaled - middle).clamp(min=0).pow(1 / (alpha - 1)).sum()
        low, high = (middle, high) if total > 1 else (low, middle)
    return (scaled - (low + high) / 2).clamp(min=0).pow(1 / (alpha - 1))


@pytest.mark.parametrize(("name", "alpha"), [("sparsemax", 2.0), ("entmax", 1.5)])
@given(length=st.integers(1, 40), seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 0.3, 5.0]))
@settings(max_examples=25, deadline=None)
def test_simplex_gates_are_the_published_maps(name: str, alpha: float, length: int, seed: int, spread: float) -> None:
    tau = 0.25
    x = spread * numbers(length, seed)
    ours = build_gate(name, temperature=tau)(x, responses([length]))
    z = x / (tau * length) if alpha == 2.0 else 2 * x / (tau * length**0.5)
    torch.testing.assert_close(ours, length * simplex_projection(z, alpha), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("power", [1, 2])
def test_simplex_gradients(power: int) -> None:
    lengths = torch.tensor([[5.0], [3.0], [1.0]], dtype=torch.float64)
    there = torch.arange(5) < lengths

    def gated(x: Tensor) -> Tensor:
        return shifted_power(torch.where(there, x, torch.full_like(x, -torch.inf)), lengths, power)

    x = (2 * numbers(15, 3)).view(3, 5).requires_grad_()
    values = gated(x)
    assert (values[there] == 0).any()
    assert not values[~there].any()
    assert torch.autograd.gradcheck(gated, (x,))


def test_simplex_sparsity_does_not_depend_on_the_length() -> None:
    for name in ("sparsemax", "entmax"):
        gate = build_gate(name, temperature=0.3)
        shares = [float((gate(numbers(n, 7), responses([n])) == 0).double().mean()) for n in (200, 4000)]
        assert 0.3 < shares[0] < 0.95
        assert abs(shares[0] - shares[1]) < 0.07


def test_straight_through_gradients_are_the_surrogates() -> None:
    x = numbers(50, 2).requires_grad_()
    own = responses([50])
    for name in ("binary", "gumbel_sigmoid"):
        hard = build_gate(name, temperature=0.7)(x, own)
        assert set(hard.tolist()) == {0.0, 1.0}
        (gradient,) = torch.autograd.grad(hard.sum(), x)
        (expected,) = torch.autograd.grad(torch.sigmoid(4 * (x - 0.5) / 0.7).sum(), x)
        torch.testing.assert_close(gradient, expected)


def test_hard_concrete_counts_the_probability_of_being_kept() -> None:
    gate = HardConcrete()
    x = torch.tensor([-0.6, 0.0, 0.2, 0.5, 1.0]).repeat_interleave(20_000)
    kept = gate(x, responses([len(x)]), uniforms(len(x))) > 0
    share = kept.float().view(5, -1).mean(-1)
    torch.testing.assert_close(share, gate.size(x).view(5, -1)[:, 0], atol=0.012, rtol=0)
    shut = torch.tensor([-1.0], requires_grad=True)
    gate.size(shut).sum().backward()
    assert shut.grad.item() > 0  # the penalty's gradient reaches shut tokens too


def test_gumbel_keeps_with_the_probability_of_its_logit() -> None:
    x = torch.full((50_000,), 0.7)
    kept = build_gate("gumbel_sigmoid")(x, responses([len(x)]), uniforms(len(x)))
    assert kept.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.8)).item(), abs=0.01)


def test_topk_keeps_its_share_and_breaks_ties_by_position() -> None:
    gate = build_gate("topk", share=0.5)
    mask = gate(torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, -1.0, 3.0, 1.0]), responses([4, 4]))
    assert mask.tolist() == [1, 1, 0, 0, 2, 0, 3, 0]


def test_heads_and_layers_draw_apart() -> None:
    mask = LearnedMask(8, 3, sharing="independent", init="ones", gate="gumbel_sigmoid").train()
    mask.heads["kl"].load_state_dict(mask.heads["reward"].state_dict())
    _, inputs = trained_inputs("gumbel_sigmoid")
    masks = mask.token_masks(inputs)
    assert not torch.equal(masks.reward, masks.kl)


def test_offset_and_scale_act_before_the_gate() -> None:
    mask, inputs = trained_inputs("clamped")
    rows, columns = inputs.response_mask.nonzero(as_tuple=True)
    mixed = mask.mixed_values(inputs.hidden_states, (rows, columns))
    plain = mask.token_masks(inputs).reward[inputs.response_mask]
    torch.testing.assert_close(plain, (mixed[0] - 0.5).clamp(0, 1))
    mask.heads["shared"].offset.fill_(0.2)
    mask.heads["shared"].scale.fill_(3.0)
    moved = mask.token_masks(inputs).reward[inputs.response_mask]
    torch.testing.assert_close(moved, (3 * (mixed[0] - 0.2)).clamp(0, 1))
    assert not torch.allclose(plain, moved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gate": "relu6"}, "gate='relu6' is unknown; choose one of relu, clamped"),
        ({"gate_temperature": 0.5}, "gate_temperature=0.5 has no effect with gate='relu'; it belongs to sigmoid"),
        ({"gate": "topk", "gate_temperature": 0.5}, "has no effect with gate='topk'"),
        (
            {"gate": "sigmoid", "topk_share": 0.5},
            "topk_share=0.5 has no effect with gate='sigmoid'; it belongs to topk",
        ),
        ({"gate": "sigmoid", "gate_temperature": 0}, "gate_temperature=0 must be a finite number above 0"),
        ({"gate": "topk", "topk_share": 1.5}, "topk_share=1.5 must be above 0 and at most 1"),
        ({"gate": "clamped", "activation": "none"}, "gate='clamped' has no effect with activation='none'"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedMask(8, 3, **arguments)


def test_every_gate_says_what_it_is() -> None:
    for gate in GATES.values():
        assert issubclass(gate, Gate)
        assert "Range" in (gate.__doc__ or "") or gate.name == "entmax"
        assert gate(**{}).settings()["gate"] == gate.name
