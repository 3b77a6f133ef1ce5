"""Extreme but finite numbers stay finite, in every objective and scorer; odd rows mean what they should."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sparsepo import SparsePOConfig, SparsePOTrainer
from sparsepo.masks.base import TokenMasks
from sparsepo.objectives import OBJECTIVES, PairScores, TokenScores, get_objective
from sparsepo.scoring import DenseScorer, FusedScorer, LMHead
from sparsepo.scoring.dense import ScorerInputs
from sparsepo.training.collator import PreferenceCollator
from tests.support import preference_rows, tiny_model, tiny_tokenizer

LINKS = {"sparsepo": ("sigmoid", "hinge", "ipo", "robust"), "dpo": ("sigmoid", "hinge", "ipo")}
CASES = [(name, link) for name in OBJECTIVES for link in LINKS.get(name, (None,))]
extreme = st.sampled_from([-1e4, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e4])


def objective_of(name: str, link: str | None) -> Any:
    return get_objective(name, **({} if link is None else {"link": link}), **_smoothing(link))


def _smoothing(link: str | None) -> dict[str, float]:
    return {"label_smoothing": 0.1} if link == "robust" else {}


@pytest.mark.parametrize(("name", "link"), CASES)
@given(
    chosen=st.lists(extreme, min_size=3, max_size=3), rejected=st.lists(extreme, min_size=3, max_size=3), mask=extreme
)
def test_every_objective_at_the_edge_of_its_range(
    name: str, link: str | None, chosen: list[float], rejected: list[float], mask: float
) -> None:
    """Log-ratios of ±10⁴ a token (one in 10⁴³⁴³), KLs to match: loss, rewards and gradients are numbers."""
    leaves = []

    def side(ratios: list[float]) -> TokenScores:
        ref = torch.full((1, 3), -1e4)
        logps = (ref + torch.tensor([ratios])).requires_grad_()
        kl = torch.tensor([ratios]).abs().requires_grad_()
        masks = torch.tensor([[abs(mask) / 1e4, 0.0, 1.0]]).requires_grad_()
        leaves.extend([logps, kl, masks])
        return TokenScores(logps, ref, kl, masks, masks, torch.ones(1, 3, dtype=torch.bool))

    result = objective_of(name, link)(PairScores(side(chosen), side(rejected)))
    for value in (result.loss, result.chosen_rewards, result.rejected_rewards):
        assert bool(torch.isfinite(value).all()), (name, link, value)
    result.loss.sum().backward()
    for leaf in leaves:
        assert leaf.grad is None or bool(torch.isfinite(leaf.grad).all()), (name, link)


def head_inputs(size: float, dtype: torch.dtype, seed: int) -> tuple[ScorerInputs, list[torch.Tensor]]:
    """Two sequences of four tokens whose logits reach ±size."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-1, 2, (2, 2, 4, 8), generator=generator).float()
    weight = torch.randint(-1, 2, (13, 8), generator=generator).float()
    root = (size / 8) ** 0.5
    policy, reference = (root * hidden[0]).to(dtype).requires_grad_(), (root * hidden[1]).to(dtype)
    policy_weight = (root * weight).to(dtype).requires_grad_()
    reference_weight = (root * weight).to(dtype)
    response = torch.ones(2, 4, dtype=torch.bool)
    ones = torch.ones(2, 4)
    inputs = ScorerInputs(
        targets=torch.randint(0, 13, (2, 4), generator=generator),
        response_mask=response,
        policy_hidden=policy,
        policy_head=LMHead(policy_weight),
        reference_hidden=reference,
        reference_head=LMHead(reference_weight),
        masks=TokenMasks(ones, ones.clone()),
        statistics=True,
    )
    return inputs, [policy, policy_weight]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(size=st.sampled_from([1e2, 1e4]), seed=st.integers(0, 50))
def test_both_scorers_on_logits_of_ten_thousand(name: str, dtype: torch.dtype, size: float, seed: int) -> None:
    losses = []
    for scorer in (DenseScorer(), FusedScorer(None)):
        inputs, leaves = head_inputs(size, dtype, seed)
        objective = get_objective(name)
        output = scorer(inputs, objective, objective.needs_kl)
        assert bool(torch.isfinite(output.loss)), scorer
        for term in ("policy_logps", "ref_logps", "kl"):
            value = getattr(output.scores.chosen, term)
            assert value is None or bool(torch.isfinite(value).all()), (scorer, term)
        output.loss.backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert bool(torch.isfinite(leaf.grad).all()), scorer
        losses.append(output.loss.detach().float())
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2 if dtype != torch.float32 else 1e-4, atol=1e-3)


# ---- rows ----


def trainer_of(folder: Path, rows: Dataset, tokenizer: Any = None, model: Any = None, **config: Any) -> SparsePOTrainer:
    settings = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    arguments = SparsePOConfig(str(folder), **{**settings, "activation_checkpointing": False, **config})
    return SparsePOTrainer(
        tiny_model("gpt2") if model is None else model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer or tiny_tokenizer(),
    )


def test_padding_with_the_end_of_sequence_token_changes_nothing(tmp_path: Path) -> None:
    """Many models have no padding token and pad with eos: the answer's own eos still counts, padding never does."""
    scores = []
    for pad in ("<pad>", "<eos>"):
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = pad
        model = tiny_model("gpt2")
        trainer = trainer_of(tmp_path / pad.strip("<>"), preference_rows(4), tokenizer, model, mask_position="token")
        batch = trainer.data_collator(list(trainer.train_dataset))
        scores.append(trainer.score(batch))
        trainer.train()
        scores.append(torch.cat([p.detach().flatten() for p in trainer.masker.parameters()]))
    for name in ("chosen", "rejected"):
        one, other = getattr(scores[0], name), getattr(scores[2], name)
        response = one.response_mask
        assert torch.equal(response, other.response_mask)
        for term in ("policy_logps", "ref_logps", "reward_mask", "kl"):
            assert torch.equal(getattr(one, term)[response], getattr(other, term)[response]), term
    assert torch.equal(scores[1], scores[3])


def test_the_answers_own_end_is_scored_where_padding_is_the_same_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<eos>"
    trainer = trainer_of(tmp_path, preference_rows(4), tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    ends = (batch["completion_mask"] * (batch["input_ids"] == tokenizer.eos_token_id)).sum(-1)
    assert ends.tolist() == [1] * 8  # its own, not those that fill the row


@pytest.mark.parametrize("objective", ["sparsepo", "mapo", "simpo"])
def test_one_token_and_cut_off_responses(tmp_path: Path, objective: str) -> None:
    """One word; nothing at all beside the end; a prompt that fills the row: finite steps, or a row that is dropped."""
    rows = [
        {"prompt": "the film was", "chosen": " good", "rejected": " bad"},
        {"prompt": "the film was", "chosen": " good", "rejected": ""},
        {"prompt": "the " * 60, "chosen": " good", "rejected": " bad awful"},
        {"prompt": "a film", "chosen": " good and warm", "rejected": " bad"},
    ]
    trainer = trainer_of(tmp_path, Dataset.from_list(rows), objective=objective, max_length=24, max_prompt_length=16)
    kept = list(trainer.train_dataset)
    assert len(kept) >= 3
    assert max(len(row["prompt_ids"]) for row in kept) == 16
    trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def test_prompts_that_leave_no_room_are_dropped_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "the " * 60, "chosen": " good", "rejected": " bad"},
        {"prompt": "a film", "chosen": " good", "rejected": " bad"},
    ]
    trainer = trainer_of(tmp_path, Dataset.from_list(rows), max_length=24)
    for row in trainer.train_dataset:
        assert len(row["prompt_ids"]) < 24


@pytest.mark.parametrize("how", ["size", "none"])
def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path, how: str) -> None:
    config = SparsePOConfig(str(tmp_path), report_to="none", use_cpu=True)
    other = tiny_model("gpt2", vocab_size=120 if how == "size" else 99)
    arguments = {"args": config, "train_dataset": preference_rows(2), "processing_class": tiny_tokenizer()}
    if how == "none":
        SparsePOTrainer(tiny_model("gpt2"), other, **arguments)
        return
    with pytest.raises(ValueError, match="vocabulary has 99 entries and the reference's 120"):
        SparsePOTrainer(tiny_model("gpt2"), other, **arguments)


def test_a_reference_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Of equal size, but with other words at the ids: nothing else would notice."""
    import json

    from sparsepo.cli.base import CliError
    from sparsepo.cli.models import refuse_other_tokenizer

    same, other, none = tmp_path / "same", tmp_path / "other", tmp_path / "none"
    tiny_tokenizer().save_pretrained(same)
    tiny_tokenizer().save_pretrained(other)
    none.mkdir()
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    for folder in (same, none):
        refuse_other_tokenizer(tiny_tokenizer(), str(folder))
    with pytest.raises(CliError, match=r"id \d+ is 'good' in the policy's and 'bad' there"):
        refuse_other_tokenizer(tiny_tokenizer(), str(other))


def test_the_collator_takes_time_in_proportion_to_the_tokens() -> None:
    """Rows of 100,000 tokens: ten times the tokens take about ten times as long, not a hundred."""
    collator = PreferenceCollator(pad_token_id=0, max_length=None)

    def seconds(length: int) -> float:
        row = {"prompt_ids": [1] * 8, "chosen_ids": [2] * length, "rejected_ids": [3] * length, "row_id": 0}
        began = time.process_time()
        batch = collator([row, row])
        assert batch["input_ids"].shape == (4, length + 8)
        return time.process_time() - began

    seconds(1000)
    short = min(seconds(10_000) for _ in range(3))
    assert min(seconds(100_000) for _ in range(2)) < 30 * max(short, 2e-3)


def test_the_check_takes_time_in_proportion_to_the_words() -> None:
    from sparsepo.data import check_preferences

    def seconds(words: int) -> float:
        rows = [{"prompt": "the film", "chosen": " good" * words, "rejected": " bad" * words}] * 2
        began = time.process_time()
        kept, _ = check_preferences(Dataset.from_list(rows[:1]), tokenizer=tiny_tokenizer(), max_length=None)
        assert len(kept) == 1
        return time.process_time() - began

    seconds(100)
    short = seconds(10_000)
    assert seconds(100_000) < 30 * max(short, 0.05)
