"""Unset settings follow objective and preset, explicit ones win, and what would be ignored is refused."""

from __future__ import annotations

import warnings

import pytest

from sparsepo import SparsePOConfig
from sparsepo.training.settings import resolve_settings


def config(**settings) -> SparsePOConfig:
    return SparsePOConfig("unused", report_to="none", **settings)


def test_defaults_are_the_librarys():
    settings = resolve_settings(config(learning_rate=2e-6))
    assert settings.objective.name == "sparsepo"
    assert settings.objective.beta == 0.1
    assert settings.objective.kl_anchor == 0.1
    assert settings.log_ratio_weight == 1.0
    assert settings.mask_kind == "learned"
    assert settings.mask_arguments == {"init": "ones", "map": "mlp"}
    assert settings.mask_training.learning_rate == pytest.approx(5e-5)
    assert settings.mask_training.weight_decay == 0.01
    assert settings.mask_training.max_grad_norm == 1.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": False}, False),
        ({"gradient_checkpointing_kwargs": '{"use_reentrant": false}'}, True),
    ],
)
def test_checkpointing_by_either_name_and_without_a_warning(settings, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = SparsePOConfig("out", use_cpu=True, report_to="none", **settings)
    assert config.gradient_checkpointing is config.activation_checkpointing is expected
    kwargs = {"use_reentrant": False} if "gradient_checkpointing_kwargs" in settings else None
    assert config.gradient_checkpointing_kwargs == config.activation_checkpointing_kwargs == kwargs


def test_without_the_fit_the_head_is_as_before():
    settings = resolve_settings(config(learning_rate=2e-6, mask_log_ratio_weight=0.0))
    assert settings.mask_training.learning_rate == pytest.approx(2e-5)
    assert settings.objective.kl_anchor == 0


def test_published_preset_and_explicit_values_win():
    settings = resolve_settings(config(preset="published", learning_rate=1e-6, beta=0.8))
    assert settings.mask_arguments == {"init": "published", "map": "linear"}
    assert settings.log_ratio_weight == settings.objective.kl_anchor == 0
    assert settings.mask_training.learning_rate == 1e-6
    assert settings.objective.beta == 0.8
    explicit = resolve_settings(config(preset="published", mask_init="ones", mask_learning_rate=3e-4))
    assert explicit.mask_arguments["init"] == "ones"
    assert explicit.mask_training.learning_rate == 3e-4


@pytest.mark.parametrize(("objective", "beta"), [("dpo", 0.1), ("simpo", 2.0), ("mapo", 0.1), ("tdpo1", 0.1)])
def test_beta_follows_the_objective(objective, beta):
    assert resolve_settings(config(objective=objective)).objective.beta == beta


def test_sparsity_asked_for_switches_the_anchor_on():
    assert resolve_settings(config(mask_l1_reward=0.1)).objective.kl_anchor == 0.1
    assert resolve_settings(config(mask_l1_reward=0.1, kl_anchor=0.0)).objective.kl_anchor == 0
    assert resolve_settings(config(mask_l1_reward=0.1, preset="published")).objective.kl_anchor == 0


@pytest.mark.parametrize("settings", [{"mask_target_sparsity": 0.5}, {"mask_target_sparsity": 0.0, "mask_on": "kl"}])
def test_so_does_a_target(settings):
    assert resolve_settings(config(**settings)).objective.kl_anchor == 0.1
    assert resolve_settings(config(**settings, kl_anchor=0.0)).objective.kl_anchor == 0
    assert resolve_settings(config(**settings, preset="published")).objective.kl_anchor == 0


@pytest.mark.parametrize("name", ["mask_target_sparsity", "mask_target_sparsity_kl"])
def test_a_target_brings_leaky_layers(name):
    """With ReLU layers tokens tie at zero and no threshold parts them."""
    target = {name: 0.5, "mask_sharing": "independent"}
    assert resolve_settings(config(**target)).mask_arguments["activation"] == "leaky"
    assert resolve_settings(config(**target, mask_activation="relu")).mask_arguments["activation"] == "relu"
    assert "activation" not in resolve_settings(config(**target, preset="published")).mask_arguments
    assert "activation" not in resolve_settings(config(mask_sharing="independent")).mask_arguments


@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ({}, {}),
        ({"mask_target_sparsity": 0.5}, {"shared": 0.5}),
        ({"mask_target_sparsity": 0.5, "mask_sharing": "independent"}, {"reward": 0.5, "kl": 0.5}),
        ({"mask_target_sparsity_kl": 0.5, "mask_sharing": "independent"}, {"kl": 0.5}),
        ({"mask_target_sparsity": 0.5, "mask_on": "kl"}, {"kl": 0.5}),
        ({"mask_target_sparsity_reward": 0.25, "mask_on": "reward"}, {"reward": 0.25}),
    ],
)
def test_targets_go_to_the_heads_that_there_are(settings, targets):
    assert resolve_settings(config(**settings)).target_sparsity == targets


def test_gate_settings_reach_the_mask():
    arguments = resolve_settings(config(mask_gate="entmax", mask_gate_temperature=0.3)).mask_arguments
    assert arguments == {"init": "ones", "map": "mlp", "gate": "entmax", "gate_temperature": 0.3}
    assert resolve_settings(config(mask_gate="topk", mask_topk_share=0.4)).mask_arguments["topk_share"] == 0.4


def test_l1_of_a_common_mask_is_halved():
    common = resolve_settings(config(mask_l1_reward=0.001, mask_l1_kl=0.002)).objective
    assert (common.l1_reward, common.l1_kl) == (0.0005, 0.001)
    independent = resolve_settings(config(mask_l1_reward=0.001, mask_l1_kl=0.002, mask_sharing="independent")).objective
    assert (independent.l1_reward, independent.l1_kl) == (0.001, 0.002)
    one_sided = resolve_settings(config(mask_l1_reward=0.001, mask_on="reward")).objective
    assert one_sided.l1_reward == 0.001


def test_a_norm_without_bound_is_allowed():
    assert config(max_grad_norm=float("inf")).max_grad_norm == float("inf")


def test_needs_follow_the_settings():
    assert not resolve_settings(config(objective="dpo")).objective.needs_kl
    assert resolve_settings(config(objective="dpo", kl_anchor=0.1)).objective.needs_kl
    assert not resolve_settings(config(objective="simpo")).objective.needs_reference


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "ppo"}, "objective='ppo' is not one of sparsepo"),
        ({"mask": 3.5}, "mask=3.5 is not one of learned"),
        ({"mask_sharing": "both"}, "mask_sharing='both' is not one of common, independent"),
        ({"beta": "0.1"}, "beta='0.1' must be a number"),
        ({"beta": True}, "beta=True must be a number"),
        ({"beta": 0}, "beta=0 must be above 0"),
        ({"mask_dropout": 1.0}, r"mask_dropout=1.0 must lie in \[0, 1\)"),
        ({"mask_l1_kl": -1}, "mask_l1_kl=-1 must be at least 0"),
        ({"mask_learning_rate": float("nan")}, "mask_learning_rate=nan must be a number"),
        ({"beta": 10**400}, "beta=1000.*0 must be a number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a finite number"),
        ({"logging_steps": float("inf")}, "logging_steps=inf must be a finite number"),
        ({"weight_decay": 10**400}, "weight_decay=1000.*0 must be a finite number"),
        ({"mask_activation_groups": ["mlp", "heads"]}, "mask_activation_groups='heads' is not one of mlp"),
        ({"mask_activation_groups": ["mlp", "mlp"]}, "names a group twice"),
        ({"mask_activation_groups": []}, "must be a list of"),
        ({"max_prompt_length": 1.5}, "max_prompt_length=1.5 must be a whole number"),
        ({"max_prompt_length": 512, "max_length": 512}, "leaves no room for a response"),
        ({"scorer": "quick"}, "scorer='quick' is not one of auto, fused, dense"),
        ({"preset": "paper"}, "preset='paper' is not one of published"),
        ({"mask_gate": "softmax"}, "mask_gate='softmax' is not one of relu, clamped"),
        ({"mask_gate_temperature": 0}, "mask_gate_temperature=0 must be above 0"),
        ({"mask_target_sparsity": 1.0}, r"mask_target_sparsity=1.0 must lie in \[0, 1\)"),
        ({"mask_hold_steps": 2.5}, "mask_hold_steps=2.5 must be a whole number of steps"),
        (
            {"mask_lr_scheduler_type": "reduce_lr_on_plateau"},
            "mask_lr_scheduler_type='reduce_lr_on_plateau' is not one of",
        ),
    ],
)
def test_bad_values_are_named_when_the_config_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "dpo", "mask": "learned"}, "mask='learned' has no effect with objective='dpo'"),
        ({"objective": "dpo", "mask_dropout": 0.1}, "mask_dropout=0.1 has no effect with objective='dpo'"),
        ({"objective": "mapo", "mask": "learned"}, "objective='mapo' means activation masks"),
        ({"objective": "mapo", "mask_init": "ones"}, "mask_init='ones' has no effect with mask='activation'"),
        ({"mask": "dense", "mask_on": "reward"}, "mask_on='reward' has no effect with mask='dense'"),
        ({"mask": "random", "mask_learning_rate": 1e-3}, "mask_learning_rate=0.001 has no effect with mask='random'"),
        ({"mask_activation_groups": ["mlp"]}, "has no effect with mask='learned'"),
        ({"alpha": 0.5}, "alpha=0.5 has no effect with objective='sparsepo'"),
        ({"objective": "tdpo2", "gamma": 0.5}, "gamma=0.5 has no effect with objective='tdpo2'"),
        ({"mask_init_pairs": 8}, "has no effect without mask_init='mapo'"),
        ({"mask_map": "linear", "mask_map_width": 8}, "has no effect without mask_map='two_layer'"),
        ({"mask_layers": "last", "mask_map_width": 8}, "has no effect without mask_map='two_layer'"),
        ({"mask_on": "reward", "mask_sharing": "common"}, "there is one mask only"),
        ({"mask_on": "reward", "mask_l1_kl": 0.1}, "that mask is constant"),
        ({"loss_type": ["apo_zero"]}, "token-level objectives take one preference link"),
        ({"loss_type": ["sigmoid", "sft"]}, "token-level objectives take one preference link"),
        ({"objective": "simpo", "loss_type": ["ipo"]}, "has the sigmoid link without smoothing only"),
        ({"objective": "simpo", "label_smoothing": 0.1}, "has the sigmoid link without smoothing only"),
        ({"objective": "dpop", "loss_type": ["hinge"]}, "link='hinge' is not open to 'dpop'"),
        ({"objective": "dpo", "loss_type": ["ipo"], "label_smoothing": 0.1}, "has no meaning for link='ipo'"),
        ({"mask_gate_temperature": 0.5}, "mask_gate_temperature=0.5 has no effect with mask_gate='relu'"),
        (
            {"mask_gate": "clamped", "mask_topk_share": 0.5},
            "mask_topk_share=0.5 has no effect with mask_gate='clamped'",
        ),
        ({"mask": "random", "mask_gate": "relu"}, "mask_gate='relu' has no effect with mask='random'"),
        ({"objective": "dpo", "mask_hold_steps": 3}, "mask_hold_steps=3 has no effect with objective='dpo'"),
        ({"mask_gate": "normalised", "mask_l1_reward": 0.1}, "whose masks have mean 1"),
        ({"mask_gate": "sigmoid", "mask_target_sparsity": 0.5}, "it has no exact zeros"),
        ({"mask_gate": "topk", "mask_target_sparsity": 0.5}, "keeps mask_topk_share"),
        ({"mask_target_sparsity_reward": 0.5}, "a common mask is one mask for reward and KL"),
        (
            {"mask_sharing": "independent", "mask_target_sparsity": 0.5, "mask_target_sparsity_kl": 0.4},
            "sets both masks, and mask_target_sparsity_kl=0.4 one of them",
        ),
        ({"mask_on": "reward", "mask_target_sparsity_kl": 0.4}, "has no effect with mask_on='reward'"),
        ({"mask_sparsity_warmup": 0.5}, "mask_sparsity_warmup=0.5 has no effect without mask_target_sparsity"),
        ({"mask_l1_warmup": 0.5}, "mask_l1_warmup=0.5 has no effect without mask_l1_reward or mask_l1_kl"),
        ({"label_smoothing": 0.7}, r"label_smoothing=0.7 must lie in \[0, 0.5\)"),
    ],
)
def test_what_would_be_ignored_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve_settings(config(**settings))


def test_a_plain_cpu_run_needs_no_precision_flag():
    import torch

    if torch.cuda.is_available():
        pytest.skip("the machine has an accelerator")
    assert config().bf16 is False
