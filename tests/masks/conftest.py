"""Golden values of the official code and the tiny reference that they were computed with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsepo.masks import MaskInputs
from tests.masks.models import noise_of


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> dict[str, Tensor]:
    return load_file(golden_folder / "gpt2" / "golden.safetensors")


@pytest.fixture(scope="session")
def golden_reference(golden_folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(golden_folder / "gpt2" / "reference").eval()


@pytest.fixture(scope="session")
def golden_batch(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """All eight responses, chosen first, right-padded: ids, attention (8, S), response mask (8, S − 1)."""
    rows = []
    for side in ("chosen", "rejected"):
        for pair in range(4):
            prompt, response = golden[f"pair{pair}.prompt_ids"], golden[f"pair{pair}.{side}_ids"]
            rows.append((torch.cat([prompt, response]), len(prompt)))
    longest = max(len(ids) for ids, _ in rows)
    ids, attention, response = (torch.zeros(8, longest, dtype=torch.int64) for _ in range(3))
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        response[row, prompt : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": attention, "response_mask": response[:, 1:].bool()}


@pytest.fixture(scope="session")
def golden_states(golden_reference: nn.Module, golden_batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        output = golden_reference(
            golden_batch["input_ids"], attention_mask=golden_batch["attention_mask"], output_hidden_states=True
        )
    return list(output.hidden_states[1:])


@pytest.fixture
def inputs() -> MaskInputs:
    """Three layers of width 8 over four rows of nine positions; the last row has no response token."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(4, 9, 8, generator=generator) for _ in range(3)]
    response = torch.zeros(4, 8, dtype=torch.bool)
    response[0, 3:7] = True
    response[1, 0:8] = True
    response[2, 5] = True
    return MaskInputs(response, states, noise=noise_of(response))
