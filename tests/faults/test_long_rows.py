"""Rows of 100,000 tokens: cut where ``max_length`` says so, scored in memory that grows with the row and not faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.common import peak_allocated
from datasets import Dataset
from torch import Tensor

from sparsepo import SparsePOConfig, SparsePOTrainer
from sparsepo.data import check_preferences
from sparsepo.masks.base import TokenMasks
from sparsepo.objectives import get_objective
from sparsepo.scoring import DenseScorer, FusedScorer, LMHead, ScorerInputs
from sparsepo.scoring.dense import ScorerOutput
from tests.support import WORDS, perturbed, preference_rows, tiny_model, tiny_tokenizer

LONG = 100_000
VOCABULARY, WIDTH = 300, 32
BETA = 1e-3  # sums over so many tokens would saturate the sigmoid at the usual 0.1
SIDES = ("chosen", "rejected")


def config_of(folder: Path, **settings: Any) -> SparsePOConfig:
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return SparsePOConfig(str(folder), **{"max_steps": 1, "logging_steps": 1, **quiet, **settings})


@pytest.mark.parametrize("side", ["chosen", "rejected", "prompt"])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_a_row_of_100_000_tokens_is_cut(tmp_path: Path, side: str, mode: str) -> None:
    """Through the check, the trainer's preparation and a step; its neighbours stay as they were."""
    words = " ".join(WORDS[index % len(WORDS)] for index in range(LONG))
    rows = preference_rows(3).to_list()
    rows[1] = {**rows[1], side: words if side == "prompt" else " " + words}
    kept, _ = check_preferences(Dataset.from_list(rows), tokenizer=tiny_tokenizer(), max_length=64)
    assert [row["row_id"] for row in kept] == ([0, 2] if side == "prompt" else [0, 1, 2])
    config = config_of(
        tmp_path, max_length=64, truncation_mode=mode, max_prompt_length=16, per_device_train_batch_size=3
    )
    trainer = SparsePOTrainer(
        tiny_model("gpt2"), args=config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )
    prepared = list(trainer.train_dataset)
    assert len(prepared) == 3
    batch = trainer.data_collator(prepared)
    assert batch["input_ids"].shape[1] <= 64
    lengths = batch["attention_mask"].sum(-1).view(2, 3)
    short = [len(tiny_tokenizer()(row["prompt"] + row["chosen"]).input_ids) + 1 for row in (rows[0], rows[2])]
    assert lengths[0, [0, 2]].tolist() == short
    if side != "prompt":
        number = SIDES.index(side)
        assert int(lengths[number, 1]) == 64
        ids = [*prepared[1]["prompt_ids"], *prepared[1][f"{side}_ids"]]
        assert batch["input_ids"][3 * number + 1].tolist() == (ids[:64] if mode == "keep_start" else ids[-64:])
    trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def scoring_problem(length: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], ScorerInputs]:
    """One pair: a chosen answer of that many tokens, a rejected one of three. The same numbers in every dtype."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=g)

    hidden, weight = draw(2, length, WIDTH), draw(VOCABULARY, WIDTH, scale=0.25)
    reference = (hidden + draw(2, length, WIDTH, scale=0.1)).to(dtype)
    masks = [torch.relu(draw(2, length) + 1).to(dtype) for _ in range(2)]
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    leaves = {"hidden": hidden, "weight": weight, "reward": masks[0], "kl": masks[1]}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves, ScorerInputs(
        targets=torch.randint(0, VOCABULARY, (2, length), generator=g),
        response_mask=torch.arange(length)[None] < torch.tensor([[length], [3]]),
        policy_hidden=hidden,
        policy_head=LMHead(weight),
        reference_hidden=reference,
        reference_head=LMHead(weight.detach().clone()),
        masks=TokenMasks(masks[0], masks[1]),
    )


def scored(scorer: Any, length: int, dtype: torch.dtype = torch.float32) -> tuple[ScorerOutput, dict[str, Tensor]]:
    leaves, inputs = scoring_problem(length, dtype)
    output = scorer(inputs, get_objective("sparsepo", beta=BETA), True)
    output.loss.backward()
    return output, {name: leaf.grad.double() for name, leaf in leaves.items() if leaf.grad is not None}


def test_the_fused_scorer_equals_the_float64_oracle_on_100_000_tokens() -> None:
    one, gradients = scored(FusedScorer(budget_mib=8), LONG)
    oracle, expected = scored(DenseScorer(), LONG, torch.float64)
    for field in ("policy_logps", "ref_logps", "kl"):
        mine, truth = (getattr(output.scores.chosen, field).double() for output in (one, oracle))
        torch.testing.assert_close(mine, truth, rtol=1e-5, atol=1e-5)
    # a sum of 100,000 numbers in float32
    torch.testing.assert_close(one.loss.double(), oracle.loss.double(), rtol=1e-4, atol=1e-4)
    for name, truth in expected.items():
        assert float((gradients[name] - truth).abs().max()) <= 1e-3 * float(truth.abs().max()), name


def scoring_peak(scorer: Any, length: int) -> float:
    """Beside the inputs."""
    _, inputs = scoring_problem(length, torch.float32)
    return peak_allocated(lambda: scorer(inputs, get_objective("sparsepo", beta=BETA), True).loss.backward())


def test_fused_memory_grows_with_the_row_and_not_with_rows_of_logits() -> None:
    """Of 8 MiB of logits whatever the length; what remains is arrays of (T, H) and (T,)."""
    quarter, half, whole = (scoring_peak(FusedScorer(budget_mib=8), length) for length in (25_000, 50_000, LONG))
    assert whole - half == pytest.approx(2 * (half - quarter), rel=0.1)
    logits = LONG * VOCABULARY * 4 / 2**20
    assert whole < 8 + 8 * LONG * WIDTH * 4 / 2**20
    assert scoring_peak(DenseScorer(), LONG) > 4 * logits


def step_on(folder: Path, length: int, scorer: str) -> tuple[dict[str, Tensor], float]:
    """One plain gradient step on a pair whose answers are that long (equally, so that nothing is padded)."""
    policy = tiny_model("llama", vocab_size=VOCABULARY, max_position_embeddings=length + 8)
    g = torch.Generator().manual_seed(0)
    sides = {f"{side}_ids": torch.randint(3, VOCABULARY, (length,), generator=g).tolist() for side in SIDES}
    rows = Dataset.from_list([{"prompt_ids": [1, 5, 6, 7], **sides, "row_id": 0}])
    config = config_of(
        folder, max_length=None, scorer=scorer, optim="sgd", learning_rate=0.1, per_device_train_batch_size=1
    )
    trainer = SparsePOTrainer(
        perturbed(policy), policy, args=config, train_dataset=rows, processing_class=tiny_tokenizer()
    )
    trainer.train()
    weights = {name: value.detach() for name, value in trainer.model.named_parameters()}
    return weights, next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def test_a_step_on_a_long_row_is_the_same_by_either_scorer(tmp_path: Path) -> None:
    (fused, loss), (dense, expected) = (step_on(tmp_path / name, 4096, name) for name in ("fused", "dense"))
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in dense.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
