"""Activation masks: the arithmetic, and taps on many architectures."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsepo.masks import ActivationMask, MaskInputs, build_mask
from sparsepo.masks.activation import GROUPS
from sparsepo.masks.features import feature_mean
from sparsepo.masks.layout import find_layout
from sparsepo.masks.taps import record_sites
from tests.masks.models import MODELS, tiny_model, tokens

ATTENTION = [name for name in MODELS if name != "mamba"]
UNROTATED = {
    "gpt2",
    "gpt_bigcode",
    "gpt_bigcode_multi_head",
    "opt",
    "opt_350m",
    "bloom",
    "mpt",
    "gpt_neo",
    "falcon_alibi",
}
# attend inline: nothing to compare with but their own formula
INLINE = ("falcon_alibi", "gptj", "bloom", "mpt", "codegen")


def masks_of(
    model: nn.Module, mask: ActivationMask, ids: Tensor, response: Tensor, attention: Tensor | None = None
) -> Tensor:
    with torch.no_grad(), mask.tap(model) as activations:
        model(ids, attention_mask=attention)
    return mask.token_masks(MaskInputs(response, activations=activations)).reward


class TestArithmetic:
    def inputs(self) -> MaskInputs:
        response = torch.zeros(3, 5, dtype=torch.bool)
        response[0, 1:4] = True
        response[1, 2] = True
        means = torch.tensor([[9.0, 2.0, 6.0, 4.0, -9.0, 50.0], [7.0] * 6, [0.0] * 6])
        constant = torch.ones(3, 6)
        return MaskInputs(response, activations={"mlp": [means], "attn": [constant, means], "resid": [-means]})

    def test_written_out(self) -> None:
        masks = ActivationMask(["mlp"]).token_masks(self.inputs())
        assert masks.reward.tolist() == [[0, 0.0, 1.0, 0.5, 0], [0, 0, 1, 0, 0], [0] * 5]
        assert torch.equal(masks.reward, masks.kl)
        # within a group first (constant counts as 1), then over groups
        both = ActivationMask(["mlp", "attn"]).token_masks(self.inputs())
        assert both.reward[0].tolist() == [0, (0 + 0.5) / 2, (1 + 1) / 2, (0.5 + 0.75) / 2, 0]
        assert ActivationMask(["resid"]).token_masks(self.inputs()).reward[0].tolist() == [0, 1.0, 0.0, 0.5, 0]

    def test_position_and_mask_on(self) -> None:
        masks = ActivationMask(["mlp"], position="token", mask_on="kl").token_masks(self.inputs())
        assert masks.kl[0].tolist() == pytest.approx([0, 1.0, (4 + 9) / 15, 0.0, 0])
        assert torch.equal(masks.reward, self.inputs().response_mask.float())

    def test_standardising_first_changes_nothing(self) -> None:
        inputs = self.inputs()
        values = inputs.activations["mlp"][0]
        standard = (values - values[0, 1:4].mean()) / values[0, 1:4].std()
        other = replace(inputs, activations={"mlp": [standard]})
        mask = ActivationMask(["mlp"])
        torch.testing.assert_close(mask.token_masks(other).reward[0], mask.token_masks(inputs).reward[0])

    def test_has_no_gradient(self) -> None:
        inputs = self.inputs()
        inputs.activations["mlp"][0].requires_grad_()
        assert not ActivationMask(["mlp"]).token_masks(inputs).reward.requires_grad

    @pytest.mark.parametrize("groups", [[], "mlp", ["mlp", "logit"], [1], None])
    def test_bad_groups(self, groups: Any) -> None:
        with pytest.raises(ValueError, match=r"groups=.*mlp, attn, resid, logits"):
            ActivationMask(groups)

    def test_groups_in_any_order_are_the_same_mask(self) -> None:
        assert ActivationMask().groups == GROUPS
        assert ActivationMask(["logits", "attn", "attn"]).settings()["groups"] == ["attn", "logits"]

    def test_missing_activations(self) -> None:
        with pytest.raises(ValueError, match="needs activations"):
            ActivationMask().token_masks(replace(self.inputs(), activations=None))
        with pytest.raises(ValueError, match="No activations of logits"):
            ActivationMask().token_masks(self.inputs())
        with pytest.raises(ValueError, match="whole sequence"):
            ActivationMask(["mlp"]).token_masks(replace(self.inputs(), activations={"mlp": [torch.ones(3, 5)]}))


def test_means_below_rounding_are_zero() -> None:
    values = 100 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    normalised = F.layer_norm(values, (64,))
    assert normalised.mean(-1).any()  # rounding noise …
    assert not feature_mean(normalised).any()  # … is none
    shifted = normalised + 1e-4
    torch.testing.assert_close(feature_mean(shifted), torch.full((50,), 1e-4), rtol=2e-3, atol=0)
    assert feature_mean(values.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(feature_mean(values), values.mean(-1))


@pytest.mark.parametrize("name", MODELS)
def test_sites_of_every_architecture(name: str) -> None:
    model, ids = tiny_model(name), tokens()
    layout = find_layout(model)
    with torch.no_grad(), record_sites(model, layout.groups) as sites:
        logits = model(ids).logits
    assert layout.groups == (("resid", "logits") if name == "mamba" else GROUPS)
    for site, values in sites.items():
        assert values.shape == ids.shape, site
        assert values.dtype == torch.float32
        assert values.std() > 0, site
    torch.testing.assert_close(sites["logits"], logits.float().mean(-1), rtol=1e-4, atol=1e-6)
    per_block = ["resid.block", "resid.norm0"]
    if name != "mamba":
        per_block += ["attn.v", "attn.out", "mlp.act", "resid.mlp", "resid.after_attn"]
        rotated = layout.rotates
        assert rotated == (name not in UNROTATED)
        per_block += ["attn.q_rotated", "attn.k_rotated"] if rotated else []
        per_block += ["attn.q", "attn.k"] if name != "codegen" else []
    for site in per_block:
        assert {f"{site}.0", f"{site}.1"} <= set(sites), site


@pytest.mark.parametrize("name", ATTENTION)  # Mamba's hidden_states leave the embeddings out
def test_stream_sites_are_the_models_own_hidden_states(name: str) -> None:
    model, ids = tiny_model(name), tokens()
    with torch.no_grad(), record_sites(model, ["resid"]) as sites:
        states = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(sites["resid.embeddings"], states[0].mean(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sites["resid.block.0"], states[1].mean(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sites["resid.final"], states[-1].mean(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_stream_adds_up(name: str) -> None:
    """Block output = residual after attention + MLP, or block input + attention + MLP where they run in parallel."""
    model, ids = tiny_model(name), tokens()
    with torch.no_grad(), record_sites(model, ["resid"]) as sites:
        model(ids)
    after, mlp, out = (sites[f"resid.{site}.0"] for site in ("after_attn", "mlp", "block"))
    if name in ("bloom", "mpt"):  # their MLP adds the stream itself
        expected = mlp
    elif name in ("gptj", "phi", "codegen", "cohere", "gpt_neox", "falcon", "falcon_new", "falcon_alibi"):
        expected = sites["resid.embeddings"] + after + mlp
    elif name in ("gemma2", "gemma3"):
        expected = after + sites["resid.norm3.0"]
    elif name == "olmo2":
        expected = after + sites["resid.norm1.0"]
    elif name == "opt_350m":  # normalised after each addition
        expected, out = None, None
    else:
        expected = after + mlp
    if expected is not None:
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    else:
        assert not torch.equal(after, mlp)


@pytest.mark.parametrize("name", [name for name in ATTENTION if name not in INLINE])
def test_queries_keys_and_values_are_what_attention_gets(name: str) -> None:
    """The split of fused projections and the rotated sites, against the tensors that attention itself is called with."""
    model, ids = tiny_model(name), tokens()
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    if name.startswith("falcon"):
        # attends inline through this function under sdpa
        attend = F.scaled_dot_product_attention
        owner, method = torch.nn.functional, "scaled_dot_product_attention"
        model.config._attn_implementation = "sdpa"

        def spy(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.append((q, k, v))
            return attend(q, k, v, *args, **kwargs)
    elif name == "gpt_neo":
        owner, method = type(find_layout(model).blocks[0].attention.module), "_attn"
        own = owner._attn

        def spy(self: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((q, k, v))
            return own(self, q, k, v, *args, **kwargs)
    else:
        owner, method = sys.modules[type(model).__module__], "eager_attention_forward"
        eager = owner.eager_attention_forward
        model.set_attn_implementation("eager")

        def spy(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((q, k, v))
            return eager(module, q, k, v, *args, **kwargs)

    with torch.no_grad(), patch.object(owner, method, spy), record_sites(model, ["attn"]) as sites:
        model(ids)
    assert len(calls) == 2
    suffix = "_rotated" if find_layout(model).rotates else ""
    scale = 8**-0.5 if name.startswith("opt") else 1.0  # OPT scales its queries after projecting
    for layer, (q, k, v) in enumerate(calls):
        for site, values in ((f"q{suffix}", q / scale), (f"k{suffix}", k), ("v", v)):
            torch.testing.assert_close(
                sites[f"attn.{site}.{layer}"],
                values.mean((1, 3)),
                rtol=1e-4,
                atol=1e-6,
                msg=lambda m, s=site: f"{s}: {m}",
            )


@pytest.mark.parametrize("name", ["gpt_neox", "phi3", "falcon", "falcon_new", "falcon_sequential"])
def test_fused_projections_before_rotary(name: str) -> None:
    """Rotation by nothing: with all positions zero, queries and keys before and after rotary are the same."""
    model, ids = tiny_model(name), tokens()
    zeros = torch.zeros_like(ids)
    with torch.no_grad(), record_sites(model, ["attn"]) as sites:
        model(ids, position_ids=zeros)
    for letter in "qk":
        torch.testing.assert_close(sites[f"attn.{letter}.0"], sites[f"attn.{letter}_rotated.0"], rtol=1e-4, atol=1e-6)
    with torch.no_grad(), record_sites(model, ["attn"]) as sites:
        model(ids)
    assert (sites["attn.q.0"] - sites["attn.q_rotated.0"]).abs().max() > 1e-4


def test_gptj_rotated_queries() -> None:
    model, ids = tiny_model("gptj"), tokens()
    with torch.no_grad(), record_sites(model, ["attn"]) as sites:
        model(ids, position_ids=torch.zeros_like(ids))
    torch.testing.assert_close(sites["attn.q.1"], sites["attn.q_rotated.1"], rtol=1e-4, atol=1e-6)


def test_gated_mlp_is_the_product_and_experts_are_the_blocks_output() -> None:
    model, ids = tiny_model("llama"), tokens()
    mlp = model.model.layers[0].mlp
    seen: list[Tensor] = []
    handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), record_sites(model, ["mlp"]) as sites:
        model(ids)
    handle.remove()
    product = mlp.act_fn(mlp.gate_proj(seen[0])) * mlp.up_proj(seen[0])
    torch.testing.assert_close(sites["mlp.act.0"], product.mean(-1), rtol=1e-4, atol=1e-6)
    with torch.no_grad(), record_sites(tiny_model("mixtral"), GROUPS) as sites:
        tiny = tiny_model("mixtral")
    assert not sites
    with torch.no_grad(), record_sites(tiny, GROUPS) as sites:
        tiny(ids)
    assert torch.equal(sites["mlp.act.0"], sites["resid.mlp.0"])


def test_soft_capped_logits_are_averaged_after_the_cap() -> None:
    model, ids = tiny_model("gemma2"), tokens()
    with torch.no_grad(), record_sites(model, ["logits"]) as sites:
        output = model(ids)
    torch.testing.assert_close(sites["logits"], output.logits.float().mean(-1), rtol=1e-4, atol=1e-6)
    head = model.get_output_embeddings()
    with torch.no_grad():
        uncapped = head(model.model(ids).last_hidden_state).mean(-1)
    assert (sites["logits"] - uncapped).abs().max() > 1e-3  # the cap matters here
    with torch.no_grad(), patch("sparsepo.masks.logits._TILE", 2 * 99), record_sites(model, ["logits"]) as tiled:
        model(ids)
    torch.testing.assert_close(tiled["logits"], sites["logits"])


def test_backbone_alone_is_enough() -> None:
    """The trainer runs the backbone without its head; OPT's causal LM runs its decoder without its backbone."""
    for name in ("gpt2", "opt", "llama"):
        model, ids = tiny_model(name), tokens()
        with torch.no_grad(), record_sites(model, GROUPS) as whole:
            model(ids)
        with torch.no_grad(), record_sites(model, GROUPS) as backbone:
            model.base_model(input_ids=ids)
        assert whole.keys() == backbone.keys()
        for site, values in whole.items():
            torch.testing.assert_close(values, backbone[site])


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["gptj", "falcon", "llama"])
@pytest.mark.parametrize("fails", [False, True])
def test_hooks_and_patches_go_when_the_context_ends(name: str, fails: bool) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, ids = tiny_model(name), tokens()
    namespace = sys.modules[type(model).__module__]
    rotary, before = namespace.apply_rotary_pos_emb, hook_count(model)
    try:
        with torch.no_grad(), ActivationMask().tap(model) as activations:
            assert hook_count(model) > before
            model(ids)
            if fails:
                raise RuntimeError("in the reference's forward")
    except RuntimeError:
        assert fails
    assert hook_count(model) == before
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    assert namespace.apply_rotary_pos_emb is rotary
    assert not any("_attn" in vars(module) for module in model.modules())
    recorded = [value.clone() for group in activations.values() for value in group]
    with torch.no_grad():
        model((ids + 1) % 99)  # the policy's pass: nothing is recorded
    assert all(torch.equal(a, b) for a, b in zip(recorded, (v for g in activations.values() for v in g), strict=True))


def test_taps_leave_the_forward_alone_and_keep_nothing_large() -> None:
    model, ids = tiny_model("qwen3"), tokens()
    with torch.no_grad():
        expected = model(ids).logits
        with ActivationMask().tap(model) as activations:
            tapped = model(ids).logits
    assert torch.equal(tapped, expected)
    assert all(value.numel() == ids.numel() and not value.requires_grad for g in activations.values() for value in g)


def test_another_models_forward_is_not_recorded() -> None:
    reference, policy, ids = tiny_model("llama"), tiny_model("llama"), tokens()
    with torch.no_grad():
        policy.model.layers[0].self_attn.q_proj.weight.add_(1)
        with record_sites(reference, GROUPS) as sites:
            reference(ids)
            before = {name: value.clone() for name, value in sites.items()}
            policy(ids)
    assert all(torch.equal(value, before[name]) for name, value in sites.items())


def test_peft_model_with_adapters_disabled_is_the_reference() -> None:
    from peft import LoraConfig, get_peft_model

    ids = tokens()
    for name, modules in (("llama", ["q_proj", "v_proj", "o_proj", "down_proj"]), ("gpt2", ["c_attn", "c_proj"])):
        plain = tiny_model(name)
        with torch.no_grad(), record_sites(plain, GROUPS) as expected:
            plain(ids)
        adapted = get_peft_model(tiny_model(name), LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
            with adapted.disable_adapter(), record_sites(adapted, GROUPS) as sites:
                adapted(ids)
            with record_sites(adapted, GROUPS) as with_adapters:
                adapted(ids)
        assert sites.keys() == expected.keys()
        for site, values in expected.items():
            torch.testing.assert_close(sites[site], values)
        assert not torch.allclose(with_adapters["attn.v.0"], expected["attn.v.0"])


@pytest.mark.parametrize("how", ["lora", "copy"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_adapted_head_is_read_as_the_forward_uses_it(name: str, how: str) -> None:
    from peft import LoraConfig, get_peft_model

    ids, base = tokens(), tiny_model(name, tie_word_embeddings=False)
    with torch.no_grad(), record_sites(base, ["logits"]) as expected:
        base(ids)
    where = {"target_modules": ["q_proj", "lm_head"] if how == "lora" else ["q_proj"]}
    if how == "copy":
        where["modules_to_save"] = ["lm_head"]
    adapted = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **where))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
        with adapted.disable_adapter(), record_sites(adapted, ["logits"]) as sites:
            adapted(ids)
    torch.testing.assert_close(sites["logits"], expected["logits"])


class HomeMade(nn.Module):
    """No Hugging Face architecture: attention and MLP in parallel, their sum normalised, names of its own."""

    class Block(nn.Module):
        class CausalAttn(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.qkv, self.back = nn.Linear(8, 24), nn.Linear(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                q, k, v = self.qkv(x).chunk(3, -1)
                return self.back(F.scaled_dot_product_attention(q, k, v, is_causal=True))

        class GluMlp(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)

            def forward(self, x: Tensor) -> Tensor:
                return self.two(self.one(x).tanh())

        def __init__(self) -> None:
            super().__init__()
            self.mixing, self.thinking, self.post = self.CausalAttn(), self.GluMlp(), nn.RMSNorm(8)

        def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
            both = self.mixing(hidden_states) + self.thinking(hidden_states)
            return (hidden_states + self.post(both),)

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.stack = nn.Embedding(99, 8), nn.ModuleList([HomeMade.Block() for _ in range(3)])

        def forward(self, input_ids: Tensor) -> tuple[Tensor]:
            x = self.embed(input_ids)
            for block in self.stack:
                (x,) = block(hidden_states=x)
            return (x,)

    def __init__(self) -> None:
        super().__init__()
        self.base_model, self.head = self.Backbone(), nn.Linear(8, 99)
        self.config = SimpleNamespace(num_hidden_layers=3, hidden_size=8, model_type="home_made")

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.base_model(input_ids)[0])


def test_unknown_architecture_is_served_by_what_its_modules_are() -> None:
    torch.manual_seed(0)
    model, ids = HomeMade(), tokens()
    with torch.no_grad(), record_sites(model, GROUPS) as sites:
        logits = model(ids)
    per_block = ("attn.out", "mlp.act", "resid.norm0", "resid.after_attn", "resid.mlp", "resid.block")
    once = {"resid.embeddings", "resid.final", "logits"}
    assert set(sites) == once | {f"{site}.{layer}" for site in per_block for layer in range(3)}
    torch.testing.assert_close(sites["logits"], logits.mean(-1))
    block, x = model.base_model.stack[0], model.base_model.embed(ids)
    attended = block.mixing(x)
    # in parallel there is no stream between attention and MLP: the attention's output stands for it
    torch.testing.assert_close(sites["resid.after_attn.0"], attended.mean(-1).detach())
    torch.testing.assert_close(sites["mlp.act.0"], block.thinking.one(x).tanh().mean(-1).detach())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "opt", "gpt_neox", "qwen3_moe", "mamba"])
def test_masks_do_not_depend_on_padding_or_batching(name: str) -> None:
    torch.manual_seed(0)
    model = tiny_model(name)
    mask = ActivationMask(find_layout(model).groups)
    ids = tokens(rows=2, length=9)
    response = torch.zeros(2, 8, dtype=torch.bool)
    response[:, 3:] = True
    expected = masks_of(model, mask, ids, response, torch.ones_like(ids))
    for row in range(2):
        one = slice(row, row + 1)
        padded = F.pad(ids[one], (0, 4))
        attention = F.pad(torch.ones_like(ids[one]), (0, 4))
        alone = masks_of(model, mask, padded, F.pad(response[one], (0, 4)), attention)
        torch.testing.assert_close(alone[:, :8], expected[one], rtol=0, atol=2e-4)


def test_untrained_layer_norms_do_not_turn_rounding_into_masks() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)).eval()
    with torch.no_grad(), record_sites(model, ["resid"]) as sites:
        model(tokens())
    assert not sites["resid.norm0.0"].any()
    assert not sites["resid.final"].any()


def test_empty_groups_are_refused_by_name() -> None:
    model = tiny_model("mamba")
    message = r"a 'mamba' model has no activations of mlp, attn; it has resid, logits. Set groups=\['resid', 'logits'\]"
    with pytest.raises(ValueError, match=message):
        ActivationMask().check_fits(model)
    with pytest.raises(ValueError, match=message), ActivationMask().tap(model):
        pass
    with pytest.raises(ValueError, match="no activations of attn"):
        build_mask("activation", model=model, groups=["attn"])
    build_mask("activation", model=model, groups=["resid", "logits"])


def test_model_without_known_blocks_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="No list of num_hidden_layers=5 blocks found in LlamaModel"):
        ActivationMask().check_fits(model)


def test_activation_of_unknown_shape_is_named() -> None:
    model, ids = tiny_model("llama"), tokens()
    model.model.layers[1].mlp.register_forward_hook(lambda _, __, output: output[:, :-1])
    message = r"resid\.mlp\.1 has shape \(3, 6, 32\), expected \(3, 7"
    with torch.no_grad(), pytest.raises(ValueError, match=message), record_sites(model, ["resid"]):
        model(ids)
