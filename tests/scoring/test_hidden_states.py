"""What block_outputs calls a block's output is what the block's forward hook sees, on every architecture."""

from __future__ import annotations

import pytest
import torch

from sparsepo.scoring.dense import block_outputs, model_type_of
from tests.support import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_block_outputs_are_those_of_the_blocks(architecture):
    model = (
        tiny_model(architecture, num_hidden_layers=3)
        if "n_layer" not in ARCHITECTURES[architecture][1]
        else (tiny_model(architecture, n_layer=3))
    )
    model.eval()
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    ids = torch.randint(4, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False)
    for hook in hooks:
        hook.remove()
    states = block_outputs(outputs.hidden_states, None, model_type_of(model))
    assert len(states) == 3
    for state, expected in zip(states[:2], seen[:2], strict=True):
        assert torch.equal(state, expected)
    assert torch.equal(states[2], outputs.last_hidden_state)
