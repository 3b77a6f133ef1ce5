"""The learned mask: formula, start, where it reads, precision, dropout, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsepo.masks import LearnedMask, MaskInputs, build_mask
from tests.masks.models import noise_of, tiny_model, tokens

VARIANTS: list[dict[str, Any]] = [
    {},
    {"sharing": "independent"},
    {"mask_on": "reward"},
    {"mask_on": "kl", "sharing": "independent"},
    {"layers": "last"},
    {"map": "two_layer", "map_width": 5},
    {"layers": "last", "map": "two_layer", "map_width": 5, "sharing": "independent"},
    {"activation": "none", "sharing": "independent"},
    {"position": "token"},
]


def randomised(**arguments: Any) -> LearnedMask:
    """A mask with large random parameters, so that both signs of every ReLU occur."""
    mask = LearnedMask(8, 3, **arguments)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return mask


def by_hand(mask: LearnedMask, head: str, states: list[Tensor]) -> Tensor:
    """METHOD's formula with torch's own layers, from the parameters by their public names."""
    p = {name.removeprefix(f"heads.{head}."): value for name, value in mask.named_parameters()}
    act = torch.relu if mask.activation == "relu" else (lambda x: x)
    values = []
    for layer, state in enumerate(states[-1:] if mask.layers == "last" else states):
        x = F.layer_norm(state, (8,), p["norm.weight"], p["norm.bias"], 1e-5) if "norm.weight" in p else state
        if mask.map == "two_layer":
            x = F.linear(x, p["inner_weight"][layer], p["inner_bias"][layer])
        values.append(act(x @ p["layer_weight"][layer] + p["layer_bias"][layer]))
    if mask.layers == "last":
        return values[0]
    return act(sum(v * a for v, a in zip(p["mixer_weight"], values, strict=True)))


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_masks_are_the_formula_at_response_tokens_and_zero_elsewhere(
    arguments: dict[str, Any], inputs: MaskInputs
) -> None:
    mask = randomised(**arguments)
    masks = mask.token_masks(inputs)
    read = [s[:, 1:] if mask.position == "token" else s[:, :-1] for s in inputs.hidden_states]
    response = inputs.response_mask.float()
    for ours, side in ((masks.reward, "reward"), (masks.kl, "kl")):
        if mask.mask_on not in ("both", side):
            expected = response
        else:
            expected = by_hand(mask, side if side in mask.heads else "shared", read) * response
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    # forward, on states already at the reading positions, agrees
    everywhere = mask(torch.stack(read))
    torch.testing.assert_close(everywhere.reward * response, masks.reward, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(everywhere.kl * response, masks.kl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_gradients_are_those_of_the_formula(arguments: dict[str, Any], inputs: MaskInputs) -> None:
    mask = randomised(**arguments).double()
    read = [(s[:, 1:] if mask.position == "token" else s[:, :-1]).double() for s in inputs.hidden_states]
    weight = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    masks = mask.token_masks(MaskInputs(inputs.response_mask, [s.double() for s in inputs.hidden_states]))
    (masks.reward * weight[0] + masks.kl * weight[1]).sum().backward()
    ours = {name: p.grad.clone() for name, p in mask.named_parameters()}
    mask.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for side, w in zip(("reward", "kl"), weight, strict=True):
        if mask.mask_on in ("both", side):
            value = by_hand(mask, side if side in mask.heads else "shared", read)
            total = total + (value * w)[inputs.response_mask].sum()
    total.backward()
    for name, parameter in mask.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-9)


def test_parameters_have_their_public_names_and_shapes() -> None:
    def shapes(**arguments: Any) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in LearnedMask(8, 3, **arguments).named_parameters()}

    head = {"norm.weight": (8,), "norm.bias": (8,), "layer_weight": (3, 8), "layer_bias": (3,), "mixer_weight": (3,)}
    assert shapes() == {f"heads.shared.{name}": shape for name, shape in head.items()}
    assert shapes(sharing="independent") == {f"heads.{h}.{n}": s for h in ("reward", "kl") for n, s in head.items()}
    for only in ("reward", "kl"):
        expected = {f"heads.{only}.{name}": shape for name, shape in head.items()}
        assert shapes(mask_on=only) == shapes(mask_on=only, sharing="independent") == expected
    assert shapes(layers="last") == {"heads.shared.layer_weight": (1, 8), "heads.shared.layer_bias": (1,)}
    two = shapes(map="two_layer", map_width=5)
    assert two["heads.shared.inner_weight"] == (3, 5, 8)
    assert two["heads.shared.inner_bias"] == (3, 5)
    assert two["heads.shared.layer_weight"] == (3, 5)


def test_start_as_published() -> None:
    mask = LearnedMask(768, 12)
    assert mask.init == "published"
    p = dict(mask.named_parameters())
    for name in ("layer_weight", "mixer_weight"):
        assert p[f"heads.shared.{name}"].std().item() == pytest.approx(
            0.02, rel=0.6 if name == "mixer_weight" else 0.05
        )
    assert not p["heads.shared.layer_bias"].any()
    states = torch.randn(12, 2, 20, 768, generator=torch.Generator().manual_seed(0))
    assert mask(states).reward.max() < 0.2


@pytest.mark.parametrize(
    "arguments", [{}, {"map": "two_layer"}, {"layers": "last"}, {"sharing": "independent"}], ids=str
)
def test_start_from_ones(arguments: dict[str, Any]) -> None:
    mask = LearnedMask(96, 6, init="ones", **arguments)
    states = 3 + 5 * torch.randn(6, 4, 30, 96, generator=torch.Generator().manual_seed(0))
    masks = mask(states)
    assert masks.reward.mean().item() == pytest.approx(1.0, abs=0.1)
    assert (masks.reward > 0).all()
    assert masks.reward.std() > 1e-3  # not the same for all tokens


def test_start_depends_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    first, again, other = (LearnedMask(8, 3, sharing="independent", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(
        LearnedMask(8, 3, sharing="independent", seed=1).heads["kl"].layer_weight, first.heads["kl"].layer_weight
    )
    assert torch.equal(first.heads["reward"].layer_weight, again.heads["reward"].layer_weight)
    assert not torch.equal(first.heads["reward"].layer_weight, other.heads["reward"].layer_weight)
    assert not torch.equal(first.heads["reward"].layer_weight, first.heads["kl"].layer_weight)


def test_predicting_position_does_not_see_the_token(inputs: MaskInputs) -> None:
    changed = [state.clone() for state in inputs.hidden_states]
    for state in changed:
        state[0, 7] += 1  # the position of target 6, the last response token of row 0
    for position, sees in (("predicting", False), ("token", True)):
        mask = randomised(position=position)
        before, after = mask.token_masks(inputs).reward, mask.token_masks(replace(inputs, hidden_states=changed)).reward
        assert torch.equal(before[0, 6], after[0, 6]) is not sees
        assert torch.equal(before[1:], after[1:])


def test_half_precision_states_and_autocast_change_nothing_but_the_states_rounding(inputs: MaskInputs) -> None:
    mask = randomised(sharing="independent")
    half = [state.to(torch.bfloat16) for state in inputs.hidden_states]
    expected = mask.token_masks(replace(inputs, hidden_states=[state.float() for state in half]))
    expected.reward.sum().backward()
    gradient = mask.heads["reward"].layer_weight.grad.clone()
    mask.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        masks = mask.token_masks(replace(inputs, hidden_states=half))
    masks.reward.sum().backward()
    assert masks.reward.dtype == torch.float32
    assert torch.equal(masks.reward, expected.reward)
    assert torch.equal(masks.kl, expected.kl)
    assert torch.equal(mask.heads["reward"].layer_weight.grad, gradient)


def test_head_cast_to_half_precision_still_computes_in_float32(inputs: MaskInputs) -> None:
    mask = randomised().bfloat16()
    masks = mask.token_masks(inputs)
    assert masks.reward.dtype == torch.float32
    again = randomised()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.copy_(parameter.bfloat16().float())
    torch.testing.assert_close(masks.reward, again.token_masks(inputs).reward, rtol=2e-2, atol=2e-2)


def test_nothing_flows_into_the_hidden_states(inputs: MaskInputs) -> None:
    states = [state.clone().requires_grad_() for state in inputs.hidden_states]
    randomised().token_masks(replace(inputs, hidden_states=states)).reward.sum().backward()
    assert all(state.grad is None for state in states)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_batch_without_response_tokens_gives_zero_gradients_not_none(
    arguments: dict[str, Any], inputs: MaskInputs
) -> None:
    mask = randomised(**arguments)
    empty = replace(inputs, response_mask=torch.zeros_like(inputs.response_mask))
    masks = mask.token_masks(empty)
    (masks.reward.sum() + masks.kl.sum()).backward()
    assert not masks.reward.any()
    assert all(p.grad is not None and not p.grad.any() for p in mask.parameters())


def test_backward_keeps_no_copy_of_the_states() -> None:
    states = [torch.randn(2, 401, 64) for _ in range(4)]
    response = torch.ones(2, 400, dtype=torch.bool)
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        if all(tensor.data_ptr() != state.data_ptr() for state in states):
            saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        LearnedMask(64, 4, init="ones").token_masks(MaskInputs(response, states))
    assert saved < 4 * 800 * 16  # all of the states are 4 · 800 · 64


def test_zero_masks_are_flat_unless_signed() -> None:
    assert LearnedMask(8, 3).flat_at_zero
    assert not LearnedMask(8, 3, activation="none").flat_at_zero
    mask = randomised()
    states = torch.randn(3, 5, 40, 8, generator=torch.Generator().manual_seed(1))
    values = mask(states).reward
    assert (values == 0).any()
    values[values == 0].sum().backward()
    assert all(not p.grad.any() for p in mask.parameters())


class TestDropout:
    def test_only_in_training(self, inputs: MaskInputs) -> None:
        mask = randomised(dropout=0.5)
        assert torch.equal(mask.eval().token_masks(inputs).reward, randomised().token_masks(inputs).reward)
        assert not torch.equal(mask.train().token_masks(inputs).reward, mask.eval().token_masks(inputs).reward)

    def test_is_inverted_and_unbiased(self) -> None:
        states = torch.randn(1, 400, 101, 8, generator=torch.Generator().manual_seed(0))
        mask = LearnedMask(8, 1, init="ones", dropout=0.25).train()
        response = torch.ones(400, 100, dtype=torch.bool)
        noisy = mask.token_masks(MaskInputs(response, states, noise=noise_of(response))).reward
        clean = mask.eval().token_masks(MaskInputs(response, states)).reward
        ratio = noisy / clean
        kept = 0.75**2  # once on the layer's value, once on the mask
        torch.testing.assert_close(ratio[ratio > 0], torch.full_like(ratio[ratio > 0], 1 / kept), rtol=1e-4, atol=0)
        assert (ratio > 0).float().mean().item() == pytest.approx(kept, abs=0.01)

    def test_streams_differ_between_layers_heads_and_steps(self, inputs: MaskInputs) -> None:
        mask = LearnedMask(8, 3, sharing="independent", init="ones", dropout=0.5).train()
        mask.heads["kl"].load_state_dict(mask.heads["reward"].state_dict())
        masks = mask.token_masks(inputs)
        assert not torch.equal(masks.reward, masks.kl)
        later = mask.token_masks(replace(inputs, noise=inputs.noise.at_step(4)))
        assert not torch.equal(masks.reward, later.reward)
        assert torch.equal(masks.reward, mask.token_masks(inputs).reward)
        # with one stream for all layers a token's layers would drop together: some would be kept in part
        ratio = masks.reward / mask.eval().token_masks(inputs).reward
        assert ((ratio[inputs.response_mask] > 0.1) & (ratio[inputs.response_mask] < 3.9)).any()

    def test_without_noise_key_torch_draws(self, inputs: MaskInputs) -> None:
        mask = randomised(dropout=0.5).train()
        plain = replace(inputs, noise=None)
        torch.manual_seed(0)
        first = mask.token_masks(plain).reward
        torch.manual_seed(0)
        assert torch.equal(first, mask.token_masks(plain).reward)
        assert not torch.equal(first, mask.token_masks(plain).reward)
        assert mask(torch.stack([s[:, :-1] for s in inputs.hidden_states])).reward.shape == (4, 8)

    @given(data=st.data(), rate=st.sampled_from([0.1, 0.5, 0.9]))
    @settings(max_examples=25, deadline=None)
    def test_does_not_depend_on_batching_or_padding(self, data: st.DataObject, rate: float) -> None:
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
        states = [torch.randn(5, 7, 8, generator=generator) for _ in range(3)]
        response = torch.rand(5, 6, generator=generator) > 0.4
        mask = LearnedMask(8, 3, init="ones", dropout=rate, sharing="independent").train()
        noise = noise_of(response)
        whole = mask.token_masks(MaskInputs(response, states, noise=noise))
        order = data.draw(st.permutations(range(5)))
        left = data.draw(st.integers(0, 3))
        for row in order:
            padded = MaskInputs(
                F.pad(response[row : row + 1], (left, 2)),
                [F.pad(s[row : row + 1], (0, 0, left, 2), value=9.0) for s in states],
                noise=replace(
                    noise, row=noise.row[row : row + 1], position=F.pad(noise.position[row : row + 1], (left, 2))
                ),
            )
            alone = mask.token_masks(padded)
            torch.testing.assert_close(alone.reward[0, left : left + 6], whole.reward[row], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(alone.kl[0, left : left + 6], whole.kl[row], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_layers": True}, "num_layers=True"),
        ({"sharing": "both"}, "sharing='both'"),
        ({"mask_on": "all"}, "mask_on='all'"),
        ({"position": "next"}, "position='next'"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"layers": 3}, "layers=3"),
        ({"map": "deep"}, "map='deep'"),
        ({"map_width": -1}, "map_width=-1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": "0.1"}, "dropout='0.1'"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedMask(**{"hidden_size": 8, "num_layers": 3, **arguments})


def test_bad_inputs_are_named(inputs: MaskInputs) -> None:
    mask = LearnedMask(8, 3)
    with pytest.raises(ValueError, match="needs hidden_states"):
        mask.token_masks(replace(inputs, hidden_states=None))
    with pytest.raises(ValueError, match=r"4 layers.*num_layers=3.*embedding output"):
        mask.token_masks(replace(inputs, hidden_states=[*inputs.hidden_states, inputs.hidden_states[0]]))
    with pytest.raises(ValueError, match=r"shape \(4, 9, 4\).*hidden_size=8"):
        mask.token_masks(replace(inputs, hidden_states=[s[..., :4] for s in inputs.hidden_states]))
    with pytest.raises(ValueError, match="whole sequence"):
        mask.token_masks(replace(inputs, hidden_states=[s[:, :-1] for s in inputs.hidden_states]))


def test_sizes_come_from_and_are_checked_against_the_model() -> None:
    model = tiny_model("llama")
    mask = LearnedMask.for_model(model, sharing="independent")
    assert (mask.hidden_size, mask.num_layers, mask.sharing) == (32, 2, "independent")
    assert isinstance(build_mask("learned", model=model), LearnedMask)
    mask.check_fits(model)
    with pytest.raises(ValueError, match="hidden_size=16, but LlamaForCausalLM has 32"):
        LearnedMask(16, 2).check_fits(model)
    with pytest.raises(ValueError, match="num_layers=5, but LlamaForCausalLM has 2"):
        LearnedMask(32, 5).check_fits(model)
    with pytest.raises(ValueError, match="word_embed_proj_dim=16"):
        LearnedMask(32, 2).check_fits(tiny_model("opt_350m"))


def test_all_layers_of_a_model_are_read_where_the_paper_reads_them() -> None:
    model, mask = tiny_model("llama"), LearnedMask(32, 2, init="ones")
    ids = tokens()
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    response = torch.ones(3, 6, dtype=torch.bool)
    masks = mask.token_masks(MaskInputs(response, output.hidden_states[1:]))
    expected = mask([state[:, :-1] for state in output.hidden_states[1:]])
    assert torch.equal(masks.reward, expected.reward)
