"""The shared prefix: prompts computed once give what prompts computed twice give, or the run says why not."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sparsepo.training.prefix import PrefixSharing, estimated_gain, launch_overhead
from sparsepo.training.prefix_probe import probe_batch, read_positions, run_route, stand_in, why_unequal
from sparsepo.training.prefix_routes import common_prefix_lengths, shared_layout
from sparsepo.training.trl_bridge import load_balancing_loss
from tests.support import ARCHITECTURES, collated, perturbed, preference_rows, tiny_model
from tests.training.running import assert_same, build, logged, policy_state, run_config

ATTENTION = [name for name in ARCHITECTURES if name != "mamba"]
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
BATCHES = {
    "unequal lengths": [
        (PROMPT, [20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]),
        (PROMPT[:4], [20], [30, 31]),
        (PROMPT[:7], [20, 21, 22, 23, 24], [30]),
    ],
    "one-token prompts": [([5], [20, 21], [30, 31, 32]), (PROMPT, [20, 22], [31])],
    "one-token responses": [(PROMPT, [20], [30]), (PROMPT[:3], [21], [31])],
    "equal pairs": [(PROMPT, [20, 21], [20, 21]), (PROMPT[:9], [20], [20])],
    "equal lengths": [(PROMPT, [20, 21, 22], [30, 31, 32]), (PROMPT[::-1], [20, 21, 22], [30, 31, 32])],
}


def unequal_prompts():
    """Prompts of a pair that differ in their last tokens or in length."""
    batch = collated([([*PROMPT, 50, 51], [20, 21], [30]), (PROMPT, [20], [30, 31, 32])])
    other = collated([([*PROMPT, 60], [20, 21], [30]), (PROMPT, [20], [30, 31, 32])])
    width = batch["input_ids"].shape[1]
    for name, values in batch.items():
        rejected = torch.nn.functional.pad(other[name], (0, width - other[name].shape[1]))[2:]
        values[2:] = rejected
    return batch


def all_batches():
    return {**{name: collated(pairs) for name, pairs in BATCHES.items()}, "unequal prompts": unequal_prompts()}


def assert_routes_equal(backbone, batch, route):
    """Values at the positions that are read, and gradients of all parameters."""

    def run(which):
        backbone.zero_grad()
        values = run_route(which, backbone, batch).last_hidden_state[read_positions(batch)]
        (values.float().sin() * torch.arange(values.shape[-1])).mean().backward()
        return values.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    (expected, expected_gradients), (found, gradients) = run("separate"), run(route)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    assert largest > 1e-3
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= 2e-5 * largest, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ATTENTION)
def test_routes_equal_separate_prompts(architecture, checkpointing):
    """Large random weights and rows longer than the windows; the route that a run would take, and the other one."""
    backbone = stand_in(tiny_model(architecture).base_model).train()
    if checkpointing:
        backbone.activation_checkpointing_enable()
    batch = collated([pair for name in ("unequal lengths", "one-token prompts") for pair in BATCHES[name]])
    for route in ("row",) if checkpointing else ("cache", "row"):
        assert_routes_equal(backbone, batch, route)


@pytest.mark.parametrize("route", ["cache", "row"])
@pytest.mark.parametrize("name", list(all_batches()))
def test_any_padding(name, route):
    assert_routes_equal(stand_in(tiny_model("gemma3").base_model).train(), all_batches()[name], route)


def test_layout_gives_tokens_back():
    for name, batch in all_batches().items():
        lengths = common_prefix_lengths(batch)
        rest = batch["attention_mask"].sum(-1) - lengths.repeat(2)
        layout = shared_layout(batch, lengths, int(lengths.max()), int(rest.max()))
        real = batch["attention_mask"].bool()
        assert torch.equal(layout.ordinary(layout.prompt_ids, layout.tail_ids)[real], batch["input_ids"][real]), name
        positions = layout.ordinary(layout.prompt_positions, layout.tail_positions)
        expected = torch.arange(real.shape[1]).expand_as(positions)
        assert torch.equal(positions[real], expected[real]), name
        assert int(2 * layout.prompt_mask.sum() + layout.tail_mask.sum()) == int(real.sum()), name


def test_prefix_stops_where_prompts_differ():
    assert common_prefix_lengths(unequal_prompts()).tolist() == [12, 12]
    # equal responses are not part of the prompt
    assert common_prefix_lengths(collated(BATCHES["equal pairs"])).tolist() == [12, 9]


# ---- the proof ----


def test_proof_sees_a_wrong_window(monkeypatch):
    """The row route with a window one too wide is refused, and so is the cache route under checkpointing."""
    backbone = tiny_model("mistral").base_model
    assert why_unequal("row", backbone, training=True) is None
    from sparsepo.training import prefix_routes

    honest = prefix_routes.row_masks

    def wider(model, layout, positions):
        config = copy.copy(model.config)
        config.sliding_window += 1
        holder = copy.copy(model)
        holder.config = config
        return honest(holder, layout, positions)

    monkeypatch.setattr(prefix_routes, "row_masks", wider)
    assert "hidden states" in why_unequal("row", backbone, training=True)


def test_proof_sees_a_dropped_cache():
    backbone = tiny_model("llama").base_model
    backbone.activation_checkpointing_enable()
    assert why_unequal("cache", backbone, training=True) is not None
    assert why_unequal("cache", backbone, training=False) is None


def test_proof_sees_gradients_cut_off(monkeypatch):
    """Equal values are not enough."""
    from sparsepo.training import prefix_probe

    honest = prefix_probe.run_cache

    def detached(backbone, layout, wanted):
        layout_of = layout.ordinary
        layout.ordinary = lambda prompts, tails: layout_of(prompts.detach(), tails)
        return honest(backbone, layout, wanted)

    monkeypatch.setattr(prefix_probe, "run_cache", detached)
    assert "gradients" in why_unequal("cache", tiny_model("llama").base_model, training=True)


@pytest.mark.parametrize("architecture", ["jamba", "gpt_neo", "bloom"])
def test_other_architectures_are_proven_or_refused(architecture):
    """Index-bound attention may take the cache, never the row; hybrids take neither."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "jamba": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "use_mamba_kernels": False,
            "num_experts": 2,
        },
        "gpt_neo": {
            "hidden_size": 32,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "window_size": 8,
        },
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    }
    config = AutoConfig.for_model(architecture, vocab_size=99, **sizes[architecture])
    backbone = AutoModelForCausalLM.from_config(config).base_model
    assert why_unequal("row", backbone, training=True) is not None
    assert (why_unequal("cache", backbone, training=True) is None) == (architecture != "jamba")


def test_proof_leaves_no_trace():
    model = tiny_model("llama").train()
    model.base_model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    PrefixSharing("on").run(model.base_model, collated(BATCHES["unequal lengths"]))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert_same(dict(before), dict(model.state_dict()))


# ---- when it is used ----


def calls_of(backbone, monkeypatch):
    """Token counts of each call of the backbone."""
    counts = []
    forward = backbone.forward
    monkeypatch.setattr(
        backbone, "forward", lambda **given: counts.append(given["input_ids"].numel()) or forward(**given)
    )
    return counts


def test_auto_shares_where_it_pays(monkeypatch):
    backbone = tiny_model("llama").base_model
    sharing = PrefixSharing("auto")
    long_prompt = collated([(PROMPT, [20, 21], [30, 31])] * 2)
    sharing.run(backbone, long_prompt)  # proof
    counts = calls_of(backbone, monkeypatch)
    sharing.run(backbone, long_prompt)
    assert sum(counts) == 2 * 12 + 4 * 2
    counts.clear()
    short_prompt = collated([([5], list(range(20, 40)), list(range(40, 60)))] * 2)
    sharing.run(backbone, short_prompt)
    assert counts == [4 * 21]
    counts.clear()
    PrefixSharing("off").run(backbone, long_prompt)
    assert counts == [4 * 14]


def test_auto_takes_the_cheaper_route(monkeypatch):
    """Few tokens saved: one call. Many: two calls, without the row's square mask."""
    backbone = tiny_model("llama").base_model
    sharing = PrefixSharing("auto")
    few = collated([(PROMPT, [20, 21], [30, 31])] * 2)
    many = collated([([7] * 60, [20 + i % 9 for i in range(60)], [30 + i % 7 for i in range(60)])] * 2)
    sharing.run(backbone, few)
    counts = calls_of(backbone, monkeypatch)
    sharing.run(backbone, few)
    sharing.run(backbone, many)
    assert counts == [2 * 16, 2 * 60, 4 * 60]


@pytest.mark.parametrize(
    ("prompt", "response", "cache", "row"), [(350, 40, 1.77, 1.78), (64, 192, 1.12, 1.05), (8, 64, 0.93, 1.05)]
)
def test_estimate_follows_the_measurements(prompt, response, cache, row):
    shape = (prompt + response, prompt, response)
    assert estimated_gain("cache", 2, shape, 768) == pytest.approx(cache, rel=0.03)
    assert estimated_gain("row", 2, shape, 768) == pytest.approx(row, rel=0.03)


def test_on_a_gpu_small_models_and_short_prompts_are_not_shared():
    """Launches cost what does not depend on the tokens; a CPU has none to pay for."""

    def gain(layers, width, shape, device):
        config = AutoConfig.for_model("llama", num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64,
                                      intermediate_size=4 * width, vocab_size=64)  # fmt: skip
        with torch.device(device):
            backbone = AutoModel.from_config(config)
        return estimated_gain("row", 2, shape, width, True, launch_overhead(backbone))

    assert gain(2, 256, (390, 350, 40), "cpu") > 1.7
    assert gain(2, 256, (390, 350, 40), "meta") < 1
    assert gain(24, 2048, (2048, 1024, 1024), "meta") < 1
    assert gain(32, 4096, (2200, 2000, 200), "meta") > 1.3


def test_no_common_prefix_or_left_padding_is_run_as_it_is(monkeypatch):
    backbone = tiny_model("llama").base_model
    batch = collated([(PROMPT, [20, 21], [30, 31])])
    batch["input_ids"][1, 0] = 77
    left = collated(BATCHES["unequal lengths"], side="left")
    counts = calls_of(backbone, monkeypatch)
    for given in (batch, left):
        PrefixSharing("on").run(backbone, given)
    assert counts == [batch["input_ids"].numel(), left["input_ids"].numel()]


def test_state_space_models_fall_back_with_one_line(caplog):
    backbone = tiny_model("mamba").base_model
    batch = collated([(PROMPT, [20, 21], [30, 31])] * 2)
    sharing = PrefixSharing("auto")
    with caplog.at_level(logging.WARNING, logger="sparsepo"):
        for mode in (True, False, True):
            backbone.train(mode)
            found = sharing.run(backbone, batch).last_hidden_state
    lines = [r.getMessage() for r in caplog.records if "share_prefix" in r.getMessage()]
    assert len(lines) == 1
    assert "state-space" in lines[0]
    assert torch.equal(found, run_route("separate", backbone, batch).last_hidden_state)
    with pytest.raises(ValueError, match=r"share_prefix='on'.*state-space"):
        PrefixSharing("on").run(backbone, batch)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_unread_last_tokens_are_left_out(checkpointing, monkeypatch):
    backbone = tiny_model("llama").base_model.train()
    if checkpointing:
        backbone.activation_checkpointing_enable()
    sharing = PrefixSharing("on")
    for name, batch in all_batches().items():
        sharing.run(backbone, batch, last=False)
        counts = calls_of(backbone, monkeypatch)
        found = sharing.run(backbone, batch, last=False).last_hidden_state[:, :-1]
        fewer = sum(counts)
        counts.clear()
        sharing.run(backbone, batch)
        monkeypatch.undo()
        # a tail of one token stays
        assert sum(counts) - fewer == (0 if name == "one-token responses" else len(batch["input_ids"])), name
        predicting = batch["completion_mask"][:, 1:].bool()
        expected = run_route("separate", backbone, batch).last_hidden_state[:, :-1]
        torch.testing.assert_close(found[predicting], expected[predicting], rtol=1e-4, atol=1e-5)


def test_own_model_must_agree(caplog):
    """A stand-in knows nothing of hooks on the run's own modules: here, embeddings that count columns."""
    backbone = tiny_model("llama").base_model
    batch = collated([(PROMPT, [20, 21], [30, 31])] * 2)

    def count_columns(module, args, output):
        return output + 0.1 * torch.arange(output.shape[1])[:, None]

    backbone.get_input_embeddings().register_forward_hook(count_columns)
    with caplog.at_level(logging.WARNING, logger="sparsepo"):
        found = PrefixSharing("auto").run(backbone, batch).last_hidden_state
    assert "the run's own LlamaModel gives other states" in caplog.text
    assert torch.equal(found, run_route("separate", backbone, batch).last_hidden_state)


def test_rotary_frequencies_by_length_are_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    backbone = tiny_model("llama", rope_parameters=rope).base_model
    assert "dynamic" in why_unequal("cache", backbone, training=True)


def test_active_dropout_is_named():
    backbone = tiny_model("gpt2").base_model.train()  # GPT-2's dropout of 0.1
    with pytest.raises(ValueError, match="dropout is active"):
        PrefixSharing("on").run(backbone, collated([(PROMPT, [20, 21], [30, 31])]))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_auxiliary_loss_counts_prompts_twice(architecture, checkpointing):
    model = tiny_model(architecture).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch = collated([(PROMPT, [20, 21], [30, 31, 32]), (PROMPT[:8], [20], [30, 31, 33])])
    results = []
    for mode in ("off", "on"):
        outputs = PrefixSharing(mode).run(model.base_model, batch, router=True)
        loss = load_balancing_loss(model, outputs.router_logits, batch["attention_mask"])
        model.zero_grad()
        loss.backward()
        results.append(
            (loss.detach(), [p.grad.clone() for n, p in model.named_parameters() if n.endswith("gate.weight")])
        )
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    assert results[0][1][0].abs().max() > 0


# ---- whole steps ----


def gradients_of(trainer, batch):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def long_prompts(count=4):
    rows = preference_rows(count)
    return rows.map(lambda row: {"prompt": " ".join([row["prompt"]] * 4)})


STEPS = {
    "learned": {"mask_init": "published"},
    "activation": {"objective": "mapo"},
    "independent": {"mask_sharing": "independent", "mask_position": "token"},
    "tdpo2": {"objective": "tdpo2"},
    "simpo": {"objective": "simpo"},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("kind", "architecture", "lora", "scorer"),
    [
        ("learned", "gpt2", False, "fused"),
        ("learned", "mistral", False, "dense"),
        ("learned", "gemma2", True, "fused"),
        ("activation", "llama", False, "fused"),
        ("activation", "gpt2", True, "dense"),
        ("independent", "qwen3", False, "fused"),
        ("tdpo2", "opt", False, "fused"),
        ("simpo", "falcon", False, "fused"),
        ("learned", "mixtral", False, "fused"),
    ],
)
def test_step_equals_step_without_sharing(tmp_path, kind, architecture, lora, scorer, checkpointing, monkeypatch):
    """Loss, gradients of policy and mask head, and the scores of a whole step."""
    results = []
    for mode in ("off", "on"):
        reference = tiny_model(architecture, head_scale=4.0)
        config = run_config(
            tmp_path, share_prefix=mode, scorer=scorer, gradient_checkpointing=checkpointing, **STEPS[kind]
        )
        policy = copy.deepcopy(reference) if lora else perturbed(reference)
        given = {} if lora or kind == "simpo" else {"ref_model": reference}
        trainer = build(config, long_prompts(), lora=lora, model=policy, **given)
        if lora:
            perturb_adapter(trainer.model)
        if checkpointing:
            trainer.model.activation_checkpointing_enable()
        tokens = []
        backbone = trainer.accelerator.unwrap_model(trainer.model)
        backbone = (backbone.get_base_model() if lora else backbone).base_model
        backbone.register_forward_pre_hook(
            lambda module, args, kwargs, tokens=tokens: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        batch = trainer.data_collator(list(trainer.train_dataset))
        gradients_of(trainer, batch)
        trainer.score(batch)
        tokens.clear()  # of the proof's own calls
        results.append((*gradients_of(trainer, batch), trainer.score(batch), sum(tokens)))
    (expected, expected_gradients, expected_scores, all_tokens), (loss, gradients, scores, shared_tokens) = results
    assert shared_tokens < all_tokens
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().clamp(min=1e-4)
        assert (gradients[name] - gradient).abs().max() <= 1e-4 * scale, name
    for side in ("chosen", "rejected"):
        keep = getattr(expected_scores, side).response_mask
        for field in ("policy_logps", "ref_logps", "kl", "reward_mask", "kl_mask"):
            left, right = getattr(getattr(scores, side), field), getattr(getattr(expected_scores, side), field)
            assert (left is None) == (right is None), field
            if left is not None:
                torch.testing.assert_close(left[keep], right[keep], rtol=1e-4, atol=2e-5, msg=f"{side} {field}")


def perturb_adapter(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_training_equals_training_without_sharing(tmp_path):
    """Three optimiser steps (SGD: Adam would blow up the rounding of zero gradients), and the evaluation after them."""
    runs = []
    for mode in ("off", "on"):
        config = run_config(
            tmp_path / mode, share_prefix=mode, optim="sgd", learning_rate=0.1, eval_strategy="steps", eval_steps=3
        )
        trainer = build(config, long_prompts(8), eval_dataset=long_prompts(4))
        trainer.train()
        runs.append((policy_state(trainer), [entry for entry in logged(trainer) if "train_loss" not in entry]))
    (expected, expected_logs), (found, logs) = runs
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert len(logs) == len(expected_logs)
    for left, right in zip(logs, expected_logs, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-5), name


def test_setting_is_checked(tmp_path):
    with pytest.raises(ValueError, match="share_prefix=True is not one of auto, on, off"):
        run_config(tmp_path, share_prefix=True)


def test_probe_batch_reaches_beyond_windows_and_is_always_the_same():
    first, second = (probe_batch(64, torch.device("cpu")) for _ in range(2))
    assert_same(first, second)
    lengths = first["attention_mask"].sum(-1)
    assert lengths.max() > 2 * 6
    assert set(common_prefix_lengths(first).tolist()) >= {1, 5, 9}
