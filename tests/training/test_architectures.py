"""What must hold on every architecture: true scores, no hidden dropout, padding without effect, a reference that stays in
evaluation mode, a model that is its own again after training."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tests.support import (
    _GATED,
    ARCHITECTURES,
    collated,
    perturbed,
    preference_rows,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sparsepo import LearnedMask, SparsePOConfig, SparsePOTrainer
from sparsepo.objectives import PairScores
from sparsepo.scoring import dense_pair_scores
from sparsepo.scoring.dense import block_outputs, forward_arguments
from sparsepo.training.step import MASK_ATTRIBUTE, base_model_of

from .matrix import EXPERTS, MASKS, QUIET_PEFT, lora

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES)
# Architectures beyond the matrix whose logits are scaled: logits · logit_scale, logits / logits_scaling
SCALED: dict[str, dict[str, Any]] = {
    "cohere": {**_GATED, "logit_scale": 0.25},
    "granite": {**_GATED, "logits_scaling": 4.0},
}
pytestmark = [
    *QUIET_PEFT,
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"),
]


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """Trainer collects garbage at the start of every run: keep the imported libraries out of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Tokenised rows, prepared once."""
    folder = tmp_path_factory.mktemp("rows")
    return trainer_of(tiny_model("gpt2"), folder, preference_rows(8), objective="tdpo1").train_dataset


def trainer_of(
    model: nn.Module,
    folder: Path,
    rows: Dataset,
    ref_model: nn.Module | None = None,
    peft_config: Any = None,
    masker: Any = None,
    **settings: Any,
) -> SparsePOTrainer:
    config = SparsePOConfig(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "use_cpu": True,
            **settings,
        },
    )
    return SparsePOTrainer(
        model,
        ref_model,
        config,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        mask=masker,
    )


def batch_of(trainer: SparsePOTrainer, rows: Dataset) -> dict[str, Any]:
    return trainer.data_collator([rows[index] for index in (1, 4, 6)])


def assert_same_scores(one: PairScores, other: PairScores, names: tuple[str, ...], **tolerance: float) -> None:
    """Equal at response tokens, whatever columns these stand in."""
    for side in ("chosen", "rejected"):
        mine, theirs = getattr(one, side), getattr(other, side)
        assert torch.equal(mine.lengths(), theirs.lengths())
        for name in names:
            left, right = getattr(mine, name), getattr(theirs, name)
            assert left is not None, name
            torch.testing.assert_close(
                left[mine.response_mask],
                right[theirs.response_mask],
                **{"rtol": 1e-4, "atol": 2e-5, **tolerance},
                msg=lambda m, n=name, s=side: f"{n} of {s}: {m}",
            )


SCORES = ("policy_logps", "ref_logps", "kl", "reward_mask", "kl_mask")


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


# ---- dropout ----


def rates(architecture: str) -> dict[str, float]:
    """Every dropout-like setting of an architecture, raised."""
    settings = tiny_config(architecture).to_dict()
    names = [
        name for name, value in settings.items() if isinstance(value, float) and ("drop" in name or "jitter" in name)
    ]
    return {name: 0.3 for name in names if "classifier" not in name and "summary" not in name}


def train_mode_losses(trainer: SparsePOTrainer, batch: dict[str, Any]) -> list[float]:
    trainer.model.train()
    with torch.no_grad():
        return [float(trainer.compute_loss(trainer.model, dict(batch))) for _ in range(2)]


@EVERY
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_disable_dropout_finds_every_dropout(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    changes: dict[str, Any] = rates(architecture)
    if architecture == "falcon":
        changes["parallel_attn"] = False  # the only layout that uses its attention dropout a second time
    found = {}
    for disable in (True, False):
        reference = tiny_model(architecture, **changes)
        if tuning == "full":
            model, other, peft_config = perturbed(reference, scale=0.2), reference, None
        else:
            model, other, peft_config = reference, None, lora(architecture, lora_dropout=0.4, init_lora_weights=False)
        torch.manual_seed(0)
        trainer = trainer_of(
            model,
            tmp_path,
            rows,
            other,
            peft_config,
            objective="tdpo1",
            disable_dropout=disable,
            router_aux_loss_coef=0.0,
        )
        first, second = train_mode_losses(trainer, batch_of(trainer, rows))
        found[disable] = first != second
    assert not found[True]
    # and there was dropout to find
    assert found[False] == (bool(changes) or tuning == "lora")


# ---- reference ----


class SpyingScorer:
    """Keeps the reference's hidden states that a step was given."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer
        self.seen: list[torch.Tensor] = []

    def __call__(self, inputs: Any, objective: Any, need_kl: bool) -> Any:
        self.seen.append(inputs.reference_hidden.clone())
        return self.scorer(inputs, objective, need_kl)


@EVERY
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_reference_runs_in_evaluation_mode(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    start = tiny_model(architecture, **rates(architecture))
    peft_config = lora(architecture, lora_dropout=0.4) if tuning == "lora" else None
    trainer = trainer_of(copy.deepcopy(start), tmp_path, rows, None, peft_config, disable_dropout=False)
    trainer.scorer = SpyingScorer(trainer.scorer)
    batch = batch_of(trainer, rows)
    trainer.model.train()
    modes = [module.training for module in trainer.model.modules()]
    for _ in range(2):
        trainer.compute_loss(trainer.model, dict(batch)).backward()
    assert [module.training for module in trainer.model.modules()] == modes
    with torch.no_grad():
        expected = start.eval().base_model(**forward_arguments(start, batch)).last_hidden_state[:, :-1]
    real = batch["attention_mask"][:, :-1].bool()
    assert len(trainer.scorer.seen) == 2
    for seen in trainer.scorer.seen:
        assert not seen.requires_grad
        torch.testing.assert_close(seen[real], expected[real], rtol=1e-5, atol=1e-6)
    if trainer.ref_model is not None:
        assert not any(module.training for module in trainer.ref_model.modules())
        assert all(parameter.grad is None for parameter in trainer.ref_model.parameters())


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt_neox", "falcon", "gptj", "phi", "gemma2"],  # with bias: gptj, phi; tied: falcon, gemma2
)
def test_a_trained_head_leaves_the_reference_its_own(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    start = tiny_model(architecture)
    adapter = lora(architecture, modules_to_save=["lm_head"], target_modules=r".*(q_proj|query_key_value)")
    trainer = trainer_of(tiny_model(architecture), tmp_path, rows, None, adapter, objective="tdpo1")
    batch = batch_of(trainer, rows)
    with torch.no_grad():
        before = dense_pair_scores(start.eval(), start, batch)
    trainer.train()
    after = trainer.score(batch)
    assert_same_scores(after, before, ("ref_logps",))
    base = base_model_of(trainer.model)
    trained = base.get_output_embeddings().modules_to_save["default"].weight.detach()
    assert float((trained - start.get_output_embeddings().weight.detach()).abs().max()) > 1e-3
    assert float(after.chosen.kl.max()) > 1e-4
    trainer.save_model()
    policy = PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    with torch.no_grad():
        again = dense_pair_scores(policy, start, batch)
    assert_same_scores(after, again, ("policy_logps", "ref_logps", "kl"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_a_given_adapter_is_its_own_reference(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    """A PeftModel that was trained before: TRL keeps a frozen copy of its adapter, which is the reference."""
    torch.manual_seed(3)
    policy = get_peft_model(tiny_model(architecture), lora(architecture, init_lora_weights=False))
    start = copy.deepcopy(policy).eval()
    trainer = trainer_of(policy, tmp_path, rows, objective="tdpo1")
    batch = batch_of(trainer, rows)
    with torch.no_grad():
        expected = dense_pair_scores(start, start, batch)
    assert_same_scores(trainer.score(batch), expected, ("policy_logps", "ref_logps"))
    trainer.train()
    after = trainer.score(batch)
    assert_same_scores(after, expected, ("ref_logps",))
    assert float((after.chosen.policy_logps - expected.chosen.policy_logps).abs().max()) > 1e-3


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


# ---- gradient checkpointing ----


def gradients(trainer: SparsePOTrainer, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@EVERY
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointing_changes_no_gradient(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    found = []
    ways: list[dict[str, Any]] = [{"gradient_checkpointing": False}, {"gradient_checkpointing": True}]
    if architecture not in EXPERTS:  # there refused, see below
        ways.append({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}})
    for settings in ways:
        torch.manual_seed(0)
        adapter = lora(architecture, init_lora_weights=False) if tuning == "lora" else None
        reference = tiny_model(architecture)
        policy, other = (perturbed(reference), reference) if tuning == "full" else (reference, None)
        trainer = trainer_of(policy, tmp_path, rows, other, adapter, **settings)
        batch = batch_of(trainer, rows)
        if settings["gradient_checkpointing"]:
            base_model_of(trainer.model).gradient_checkpointing_enable(settings.get("gradient_checkpointing_kwargs"))
            assert base_model_of(trainer.model).is_gradient_checkpointing
        found.append(gradients(trainer, batch))
    plain = found[0]
    assert any("lora_" in name for name in plain) == (tuning == "lora")
    assert any(MASK_ATTRIBUTE in name for name in plain)
    for others in found[1:]:
        assert others.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# ---- mixtures of experts ----


@pytest.mark.parametrize("architecture", EXPERTS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_auxiliary_loss_is_the_models_own(architecture: str, tuning: str, tmp_path: Path, rows: Dataset) -> None:
    reference = tiny_model(architecture)
    adapter = lora(architecture) if tuning == "lora" else None
    losses, slopes = {}, {}
    for coefficient in (0.0, 0.5):
        trainer = trainer_of(
            copy.deepcopy(reference),
            tmp_path,
            rows,
            peft_config=adapter,
            objective="dpo",
            router_aux_loss_coef=coefficient,
            logging_strategy="steps",
            logging_steps=1,
        )
        batch = batch_of(trainer, rows)
        trainer.model.train()
        losses[coefficient] = trainer.compute_loss(trainer.model, dict(batch))
        losses[coefficient].backward()
        slopes[coefficient] = {
            name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
        }
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logged) == 2
        assert all(("aux_loss" in entry) == (coefficient > 0) for entry in logged)
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask")}
    own = reference.eval()(**arguments, output_router_logits=True).aux_loss
    assert own.item() > 1.0
    torch.testing.assert_close(losses[0.5] - losses[0.0], 0.5 * own, rtol=1e-5, atol=1e-6)
    assert slopes[0.5].keys() == slopes[0.0].keys()
    if tuning == "lora":  # its B matrices, zero at the start, are what the gradient reaches
        assert any(not torch.allclose(slope, slopes[0.0][name]) for name, slope in slopes[0.5].items())
        return
    own.backward()
    for name, parameter in reference.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else 0.5 * parameter.grad
        torch.testing.assert_close(slopes[0.5][name] - slopes[0.0][name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_checkpointing_that_cuts_the_router_off_is_refused(architecture: str, tmp_path: Path, rows: Dataset) -> None:
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"use_reentrant.*auxiliary loss.*router_aux_loss_coef=0\.0"):
        trainer_of(tiny_model(architecture), tmp_path, rows, **settings)
    trainer_of(tiny_model(architecture), tmp_path, rows, router_aux_loss_coef=0.0, **settings).train()
