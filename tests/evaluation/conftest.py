"""A tiny model whose predictions are far from uniform, so that mistakes in sampling or KL show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsepo.playground.models import build_model, build_tokenizer
from sparsepo.playground.world import World


def sharpened(seed: int, architecture: str = "gpt2") -> Any:
    """A tiny random model whose logits are scaled up."""
    model = build_model(build_tokenizer(World()), architecture, seed=seed, hidden_size=16, layers=2, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer(World())


@pytest.fixture(scope="session")
def policy() -> Any:
    return sharpened(0)


@pytest.fixture(scope="session")
def reference() -> Any:
    return sharpened(1)
