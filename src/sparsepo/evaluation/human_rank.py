"""HumanRankEval: does a model's likelihood rank answers to a question as people's votes do?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsepo.loading import positions_in

from .generation import Progress, evaluating

Keep = Callable[[str, Callable[[], Any]], Any]
BLOCK = 50  # questions scored, and kept, together


@dataclass(frozen=True)
class Question:
    """A question with answers that people voted on.

    Args:
        question: its text.
        answers: two or more texts.
        votes: one an answer; more is better.
        topic: the set that it belongs to, such as ``python``.
    """

    question: str
    answers: tuple[str, ...]
    votes: tuple[float, ...]
    topic: str = ""

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.votes):
            raise ValueError(f"{self.question[:60]!r}: {len(self.answers)} answers and {len(self.votes)} votes.")
        if len(self.answers) < 2:
            raise ValueError(f"{self.question[:60]!r}: ranking takes two answers at least.")
        if not all(self.answers):
            raise ValueError(f"{self.question[:60]!r}: an answer is empty; leave it out.")
        if not all(map(math.isfinite, self.votes)):
            raise ValueError(f"{self.question[:60]!r}: votes must be finite numbers.")


def prompt_of(question: str) -> str:
    """What the model reads before an answer, as the authors' harness writes it."""
    return f"Question: {question}\nAnswer:"


def correlation(votes: Sequence[float], scores: Sequence[float]) -> float | None:
    """Pearson's correlation of votes and scores; None where either does not vary (the authors' code gives not-a-number)."""
    x, y = np.asarray(votes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))


def human_rank(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
) -> list[list[float | None]]:
    """Scores of each question's answers: log-likelihood (nats) of " " + answer after :func:`prompt_of`, ÷ characters.

    A prompt that does not fit loses its beginning. An answer that does not fit itself has None.

    Args:
        model, tokenizer: a Hugging Face causal LM.
        questions: what to score.
        batch_size: answers together; no effect on the result beyond rounding.
        max_length: most tokens of question and answer; None, or more than the model has positions: those, or no limit.

    Source:
        Gritta et al. 2024, "HumanRankEval" (arXiv 2405.09186), and the authors' code (huawei-noah/noah-research).
    """
    positions = positions_in(model.config)
    if positions is not None:
        max_length = positions if max_length is None else min(max_length, positions)
    rows: list[tuple[int, int, list[int], list[int]]] = []
    scores: list[list[float | None]] = [[None] * len(question.answers) for question in questions]
    for place, question in enumerate(questions):
        prompt = prompt_of(question.question)
        for number, answer in enumerate(question.answers):
            context, own = _encoded(tokenizer, prompt, f" {answer}")
            if max_length is None or len(own) < max_length:  # one token before it at least
                rows.append((place, number, context if max_length is None else context[len(own) - max_length :], own))
    rows.sort(key=lambda row: len(row[2]) + len(row[3]))
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            for (place, number, _, _), value in zip(batch, _log_likelihoods(model, batch), strict=True):
                scores[place][number] = value / len(questions[place].answers[number])
    return scores


def _encoded(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of prompt and answer; where they meet is where the prompt's own tokens end, as in the authors' harness."""
    whole = tokenizer(prompt + answer)["input_ids"]
    context = tokenizer(prompt)["input_ids"]
    end = tokenizer.eos_token_id
    if context and len(context) > 1 and context[-1] == end:  # tokenizers that close every text
        context, whole = context[:-1], whole[:-1]
    return whole[: len(context)], whole[len(context) :]


def _log_likelihoods(model: Any, rows: Sequence[tuple[int, int, list[int], list[int]]]) -> list[float]:
    width = max(len(context) + len(own) for _, _, context, own in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)  # positions whose next token is the answer's
    for i, (_, _, context, own) in enumerate(rows):  # padding at the right; nothing real attends to it
        end = len(context) + len(own)
        ids[i, :end] = torch.tensor([*context, *own])
        attention[i, :end] = 1
        predicts[i, len(context) - 1 : end - 1] = True
    logits = model(input_ids=ids.to(model.device), attention_mask=attention.to(model.device)).logits
    targets = ids.roll(-1, dims=1)[predicts].to(logits.device)
    kept = logits[predicts.to(logits.device)].float()  # (tokens, V)
    logps: Tensor = kept.gather(-1, targets[:, None]).squeeze(-1) - kept.logsumexp(-1)
    sums = torch.zeros(predicts.shape, dtype=torch.float64)
    sums[predicts] = logps.double().cpu()
    found: list[float] = sums.sum(-1).tolist()
    return found


def scored_in_blocks(
    questions: Sequence[Question],
    score: Callable[[Sequence[Question]], list[list[float | None]]],
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> list[list[float | None]]:
    """Scores of many questions, in blocks that are kept under ``questions-00000`` and so on.

    Args:
        questions: in order.
        score: :func:`human_rank` with its model.
        keep: keeps a block; None: nothing is kept.
        progress: called after each block.
    """
    found: list[list[float | None]] = []
    for start in range(0, len(questions), BLOCK):
        part = questions[start : start + BLOCK]

        def compute(part: Sequence[Question] = part) -> list[list[float | None]]:
            return score(part)

        found += compute() if keep is None else keep(f"questions-{start:05d}", compute)
        if progress is not None:
            progress(len(found), len(questions))
    return found


def correlations(questions: Sequence[Question], scores: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Each question's correlation; None where an answer does not fit, or votes or scores do not vary."""
    found = []
    for question, own in zip(questions, scores, strict=True):
        kept = [value for value in own if value is not None]
        found.append(correlation(question.votes, kept) if len(kept) == len(own) else None)
    return found
