"""A small reward model: a sequence classifier trained on scored texts, for the control gradient × input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .controls import gradient_times_input
from .generation import evaluating
from .token_table import Batch, Description


def train_reward_model(
    model: str | Path,
    tokenizer: Any,
    texts: Sequence[str],
    rewards: Sequence[float],
    *,
    epochs: float = 2,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    max_length: int = 256,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Any:
    """Fit rewards by regression, from a language model's weights.

    Args:
        model: folder or name of a Hugging Face model; its head is replaced by one number.
        tokenizer: its tokenizer, with a padding token.
        texts, rewards: what to fit, each text with its end token where judged ones have it: the last token is read.
            Rewards are standardised first, which changes no ranking.
        epochs, learning_rate, batch_size, max_length, seed: of training (AdamW, linear decay).
        device: where to train; None: the GPU where there is one.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: fewer than two texts, as many rewards as texts are not given, or all rewards are alike.
    """
    from transformers import AutoModelForSequenceClassification

    if len(texts) != len(rewards) or len(texts) < 2:
        raise ValueError(f"{len(texts)} texts and {len(rewards)} rewards; give one for each of at least two texts.")
    target = torch.tensor(list(rewards), dtype=torch.float32)
    if float(target.std()) == 0:
        raise ValueError("All rewards are alike: there is nothing to fit.")
    target = (target - target.mean()) / target.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, pad_token_id=tokenizer.pad_token_id
        )
    classifier.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, int(epochs * len(texts) / batch_size))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    classifier.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(texts), generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        inputs = _encoded(tokenizer, [texts[row] for row in rows.tolist()], max_length, classifier.device)
        loss = torch.nn.functional.mse_loss(
            classifier(**inputs).logits[:, 0].float(), target[rows].to(classifier.device)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return classifier.eval()


def predict_rewards(classifier: Any, tokenizer: Any, texts: Sequence[str], max_length: int = 256) -> Tensor:
    """The classifier's number for each text, standardised rewards, (N,)."""
    found = []
    with evaluating(classifier):
        for start in range(0, len(texts), 64):
            inputs = _encoded(tokenizer, list(texts[start : start + 64]), max_length, classifier.device)
            found.append(classifier(**inputs).logits[:, 0])
    return torch.cat(found).float().cpu()


def gradient_control(classifier: Any) -> Description:
    """Describes the target tokens of collated batches by |gradient × input| of the reward; it sees whole texts."""

    def describe(batch: Batch) -> dict[str, Tensor]:
        values = gradient_times_input(classifier, batch["input_ids"], batch["attention_mask"])
        return {"gradient_times_input": values[:, 1:]}

    return describe


def _encoded(tokenizer: Any, texts: list[str], max_length: int, device: torch.device) -> dict[str, Tensor]:
    encoded = tokenizer(
        texts, padding=True, padding_side="right", truncation=True, max_length=max_length, return_tensors="pt"
    )
    return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}
