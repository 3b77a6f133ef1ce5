"""Proof that a route of the shared prefix gives an architecture's own values and gradients.

The proof runs on a stand-in: the run's own backbone class with the run's own configuration, attention and checkpointing,
but few layers, a small vocabulary, narrow MLPs and short windows, in float32 with weights large enough that a wrong mask
shows. It costs a fraction of a step at any model size, touches neither the run's gradients nor its random state, and works
where the run's parameters are sharded or in half precision. What the stand-in cannot show (adapters, patches, hooks) the
run's own model confirms by values, on short rows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.scoring.dense import forward_arguments

from .dropout import disable_functional_dropout
from .prefix_routes import BackboneOutput, common_prefix_lengths, run_cache, run_row, shared_layout

# Largest difference relative to the largest value: right routes stay below 1e-5, a wrong mask gives more than 1e-2
TOLERANCE = 2e-4
# Relative norm of the difference on the run's own model, by precision: half precision rounds differently in other shapes
OWN_TOLERANCE = {"float32": 1e-3, "half": 0.1}
_VOCABULARY = 64
_WINDOW = 6
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "local_attention")
_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
)
_WIDTH = 64
# Prompts of unequal length with a different last token, one token, longer than the window; responses likewise
_SHAPES = ((9, 9, 4, 11), (1, 1, 7, 1), (5, 6, 8, 8), (9, 9, 1, 5))


def probe_batch(vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Four pairs of random tokens, padded on the right; the same ones on every call."""
    generator = torch.Generator().manual_seed(0)
    low = min(3, vocabulary - 1)

    def tokens(count: int) -> list[int]:
        return torch.randint(low, vocabulary, (count,), generator=generator).tolist()

    rows: list[tuple[list[int], int]] = [([], 0)] * (2 * len(_SHAPES))
    for pair, (first, second, chosen, rejected) in enumerate(_SHAPES):
        prompt = tokens(max(first, second))
        for index, length, answer in ((pair, first, chosen), (pair + len(_SHAPES), second, rejected)):
            rows[index] = (prompt[:length] + tokens(answer), length)
    width = max(len(row) for row, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, (row, prompt_length) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        attention[index, : len(row)] = 1
        completion[index, prompt_length : len(row)] = 1
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    return {name: value.to(device) for name, value in batch.items()}


def run_route(route: str, backbone: nn.Module, batch: dict[str, Any]) -> BackboneOutput:
    """The batch through a backbone by a route, without the rules of when it pays; ``separate`` is the ordinary way."""
    if route == "separate":
        return backbone(**forward_arguments(backbone, batch))
    lengths = common_prefix_lengths(batch)
    rest = batch["attention_mask"].sum(-1) - lengths.repeat(2)
    whole = bool(lengths.amin() == lengths.amax())
    layout = shared_layout(batch, lengths, int(lengths.max()), int(rest.max()), whole)
    return run_cache(backbone, layout, {}) if route == "cache" else run_row(backbone, layout, {})


def read_positions(batch: dict[str, Any]) -> Tensor:
    """Positions whose state scorers or masks read: response tokens and the ones before them, bool, (2P, S)."""
    response = batch["completion_mask"].bool()
    return response | torch.cat([response[:, 1:], torch.zeros_like(response[:, :1])], 1)


def why_unequal(route: str, backbone: nn.Module, training: bool) -> str | None:
    """None where the route equals the ordinary way on a stand-in of ``backbone``, values and gradients; else the reason.

    Args:
        route: ``cache`` or ``row``.
        backbone: the run's own; it is only looked at.
        training: train mode with gradient checkpointing as it is in ``backbone``, otherwise evaluation mode.
    """
    reason = _why_unsuitable(route, backbone)
    if reason is not None:
        return reason
    device = next(backbone.parameters()).device
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), _exact_products(), _own_random_state(device):
        try:
            small = stand_in(backbone).train(training)
            batch = probe_batch(_VOCABULARY, device)
            expected = _values_and_gradients("separate", small, batch)
            found = _values_and_gradients(route, small, batch)
        except Exception as error:  # architectures refuse in many ways
            return _cannot_run(backbone, error)
    for name, value in expected.items():
        difference = _difference(found[name], value) if name in found else float("inf")
        if not difference <= TOLERANCE:
            return f"{type(backbone).__name__} gives other {name} (relative difference {difference:.1e})"
    return None


def _why_unsuitable(route: str, backbone: nn.Module) -> str | None:
    """What is known before any proof: states that are no keys and values, frequencies that short rows do not show, attention
    without masks."""
    from transformers import DynamicCache

    config: Any = backbone.config
    name = type(backbone).__name__
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    if (
        any("Linear" in kind for kind in kinds)
        or "past_key_values" not in inspect.signature(type(backbone).forward).parameters
    ):
        return f"{name} is a state-space or hybrid model, whose layers carry a state instead of keys and values"
    attention = config._attn_implementation
    if route == "row" and attention not in ("sdpa", "eager"):
        return f"attn_implementation={attention!r} takes no mask that tells responses apart (sdpa and eager do)"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if entry.get("rope_type") in ("dynamic", "longrope"):
            return f"{name}'s rotary frequencies ({entry['rope_type']}) depend on the length of the row"
    return None


def why_own_model_differs(route: str, backbone: nn.Module) -> str | None:
    """None where the run's own backbone gives the same last states by the route, in its own mode and precision; else the
    reason. Dropout that is active shows here too."""
    device = next(backbone.parameters()).device
    config: Any = backbone.config
    batch = probe_batch(config.vocab_size, device)
    half = torch.is_autocast_enabled(device.type) or any(p.dtype != torch.float32 for p in backbone.parameters())
    read = read_positions(batch)
    with torch.no_grad(), _own_random_state(device):
        try:
            expected = run_route("separate", backbone, batch).last_hidden_state[read].float()
            found = run_route(route, backbone, batch).last_hidden_state[read].float()
        except Exception as error:
            return _cannot_run(backbone, error)
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if difference <= OWN_TOLERANCE["half" if half else "float32"]:
        return None
    return f"the run's own {type(backbone).__name__} gives other states (relative difference {difference:.1e})"


def _cannot_run(backbone: nn.Module, error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return f"{type(backbone).__name__} cannot run it ({type(error).__name__}: {line[:160]})"


def stand_in(backbone: nn.Module) -> nn.Module:
    """A small random model of the backbone's class: same kinds of layers, attention and checkpointing, float32."""
    config: Any = copy.deepcopy(backbone.config)
    _shrink(config, _layers_to_keep(backbone, config))
    small: Any = type(backbone)(config).float()
    _randomise(small)
    disable_functional_dropout(small)
    for module in small.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    small.to(next(backbone.parameters()).device)
    if is_checkpointing(backbone):
        small.activation_checkpointing_enable(_checkpointing_arguments(backbone))
    return small


def is_checkpointing(backbone: nn.Module) -> bool:
    """Whether gradient checkpointing is switched on (it acts in train mode)."""
    return any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())


def _shrink(config: Any, layers: int) -> None:
    total = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == total:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers
    config.vocab_size = _VOCABULARY
    for name in _WIDTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(getattr(config, name), _WIDTH))
    for name in _WINDOWS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(getattr(config, name), _WINDOW))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 0)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if str(config._attn_implementation or "").startswith(("flash", "kernels")):
        config._attn_implementation = "sdpa"  # they have no float32


def _layers_to_keep(backbone: nn.Module, config: Any) -> int:
    """The fewest first layers, two at least, with every kind of module and every per-layer setting of the whole."""
    total = config.num_hidden_layers
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == total]
    kinds = [{type(m).__name__ for m in layer.modules()} for layer in lists[0]] if lists else []
    settings = [list(v) for v in vars(config).values() if isinstance(v, (list, tuple)) and len(v) == total]
    for count in range(min(2, total), total):
        covers = all({str(x) for x in values[:count]} == {str(x) for x in values} for values in settings)
        if covers and set().union(*kinds[:count]) == set().union(*kinds):
            return count
    return total


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Weights at which attention is far from uniform, so that a wrong mask shows."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.1 * noise)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))


def _checkpointing_arguments(backbone: nn.Module) -> dict[str, Any] | None:
    """What gradient checkpointing was switched on with, as its bound function holds it."""
    for module in backbone.modules():
        arguments = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", None)
        if arguments is not None:
            return dict(arguments)
    return None


def _values_and_gradients(route: str, backbone: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Last states at the positions that are read, and the gradient of every parameter under a random loss."""
    for parameter in backbone.parameters():
        parameter.grad = None
    values = run_route(route, backbone, batch).last_hidden_state[read_positions(batch)]
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(2)).to(values.device)
    (values * weights).sum().backward()
    result = {"hidden states": values.detach()}
    for name, parameter in backbone.named_parameters():
        if parameter.grad is not None:
            result[f"gradients of {name}"] = parameter.grad.clone()
    return result


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; differences from zero (a key's bias has none) are
    absolute."""
    scale = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return difference / scale if scale > 1e-2 else difference


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TensorFloat-32 while float32 values are compared."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
