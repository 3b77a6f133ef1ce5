"""The shared prefix: each pair's prompt goes through a backbone once, with gradients, wherever that is proven and pays."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from sparsepo.scoring.dense import forward_arguments

from .prefix_probe import is_checkpointing, why_own_model_differs, why_unequal
from .prefix_routes import (
    ROUTES,
    BackboneOutput,
    SharedLayout,
    common_prefix_lengths,
    is_right_padded,
    run_cache,
    run_row,
    shared_layout,
    splits_rows,
)

logger = logging.getLogger(__name__)

# auto shares a batch only where it should take this many times less
LEAST_GAIN = 1.03
# The cache costs less memory than the row, so that the row must be this many times faster
_ROW_MUST_GAIN = 1.05
_CACHE_OVERHEAD = 32  # tokens
_ENTRIES_PER_TOKEN = 5  # times the hidden size
_LARGEST_MASK = (
    1 << 26
)  # entries of the rows' masks, which the ordinary way does not need: above, auto spares the memory
_LAYER_ON_A_GPU = 1.8e11  # tokens × parameters: what sharing costs a layer in launches; see launch_overhead


def launch_overhead(backbone: nn.Module) -> float:
    """What sharing costs in launches of kernels, in tokens of this backbone; 0 on a CPU.

    From one measurement (Pythia-1.4B on an H200, (1024, 1024), 2 pairs, checkpointing: 338 ms shared, 292 ms not, where the
    tokens alone would give 219): a layer costs as much as 1.8·10¹¹ tokens × parameters. A model of 1.4B then shares from
    some 3,400 saved tokens a batch on, one of 8B from some 700. Slower GPUs gain earlier than it says.
    """
    parameters = list(backbone.parameters())
    if not parameters or parameters[0].device.type == "cpu":
        return 0.0
    layers = int(getattr(backbone.config, "num_hidden_layers", 0) or 0)
    return layers * _LAYER_ON_A_GPU / max(sum(p.numel() for p in parameters), 1)


def estimated_gain(
    route: str, pairs: int, shape: tuple[int, int, int], hidden: int, split: bool = False, overhead: float = 0.0
) -> float:
    """Time of the ordinary way over time of a route, forward and backward.

    Measured on a CPU (Llama geometry, width 768, 2 pairs of unpadded rows; measured / estimated): a token costs the same
    everywhere; a second call for the cache costs as much as 32 tokens; the row's mask shows attention the whole square where
    separate rows see half of theirs, and 5 × H entries cost as much as a token.

    ============  =============  =============
    prompt, resp  cache          row
    ============  =============  =============
    (350, 40)     1.77 / 1.75    1.78 / 1.78
    (150, 80)     1.42 / 1.41    1.42 / 1.43
    (64, 192)     1.12 / 1.10    1.05 / 1.06
    (16, 64)      0.97 / 1.00    1.12 / 1.08
    (8, 64)       0.93 / 0.95    1.05 / 1.03
    ============  =============  =============

    Args:
        route: ``cache`` or ``row``.
        pairs: P.
        shape: (S, A, B): longest sequence, prefix and rest, in tokens.
        hidden: width H of the model.
        split: whether attention over a row goes in two calls (prefix_attention.py), which compute less: (512, 512) gains
            1.1 without and 1.3 with them.
        overhead: of launches, in tokens (:func:`launch_overhead`).
    """
    length, prompt, tail = shape
    ordinary = 2 * pairs * length
    shared = pairs * (prompt + 2 * tail) + overhead
    if route == "cache":
        return ordinary / (shared + _CACHE_OVERHEAD)
    shown = prompt**2 / 2 + 2 * tail * (prompt + tail) if split else (prompt + 2 * tail) ** 2
    entries = pairs * (shown - length**2)
    return ordinary / (shared + max(entries, 0) / (_ENTRIES_PER_TOKEN * hidden))


class PrefixSharing:
    """Runs backbones over collated batches, prompts once where ``mode`` and the proof allow it.

    The result has the ordinary layout, so that nothing after it changes; positions that neither masks nor scores read
    (padding) may hold other values than separate rows would.

    Args:
        mode: ``off``; ``auto``: where a proof on a stand-in model and on the run's own model succeeds and the batch has
            enough prompt, otherwise as ``off``, with one logged line that says why; ``on``: every batch that has a common
            prefix, and a ``ValueError`` where the proof fails.
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self._routes: dict[tuple[Any, ...], list[str]] = {}
        self._proofs: dict[tuple[Any, ...], str | None] = {}
        self._logged: set[str] = set()
        self._overheads: dict[int, float] = {}

    def run(
        self,
        backbone: nn.Module,
        batch: dict[str, Any],
        *,
        states: bool = False,
        router: bool = False,
        activations: dict[str, Any] | None = None,
        last: bool = True,
    ) -> BackboneOutput:
        """The backbone over a collated batch.

        Args:
            backbone: a causal LM without its head.
            batch: 2P sequences, chosen first.
            states: also return the states between blocks.
            router: also return the logits of a mixture of experts' routers.
            activations: what the taps around this call fill, group → (2P, S) arrays after it; None without taps.
            last: whether anybody reads the last token of each sequence, which predicts nothing.
        """
        wanted = {"output_hidden_states": True} if states else {}
        if router:
            wanted["output_router_logits"] = True
        layout, route = self._plan(backbone, batch, activations is not None, last or router)
        if layout is None:
            return backbone(**forward_arguments(backbone, batch), **wanted)
        if route == "cache":
            return run_cache(backbone, layout, wanted)
        return run_row(backbone, layout, wanted, activations)

    def _plan(
        self, backbone: nn.Module, batch: dict[str, Any], tapped: bool, last: bool
    ) -> tuple[SharedLayout | None, str | None]:
        """Layout and route for a batch, or (None, None) for the ordinary way."""
        if self.mode == "off":
            return None, None
        lengths = common_prefix_lengths(batch)
        rest = batch["attention_mask"].sum(-1) - lengths.repeat(2)
        facts = torch.stack(
            [is_right_padded(batch["attention_mask"]).long(), lengths.amin(), lengths.amax(), rest.amax()]
        )
        right_padded, shortest, prompt_width, tail_width = facts.tolist()  # the one synchronisation with the device
        if not right_padded or shortest < 1 or tail_width < 1:
            return None, None
        tail_width = tail_width if last else max(tail_width - 1, 1)
        ids = batch["input_ids"]
        shape = (ids.shape[1], prompt_width, tail_width)
        hidden = int(getattr(backbone.config, "hidden_size", 0) or 1)
        allowed = self._allowed(backbone, tapped)
        split = splits_rows(backbone)
        overhead = self._overhead(backbone)
        gains = {route: estimated_gain(route, len(ids) // 2, shape, hidden, split, overhead) for route in allowed}
        if self.mode == "auto":
            gains = {route: gain for route, gain in gains.items() if gain >= LEAST_GAIN}
            if len(ids) // 2 * (prompt_width + 2 * tail_width) ** 2 > _LARGEST_MASK:
                gains.pop("row", None)
        if not gains:
            return None, None
        proven = self._proven(backbone, allowed)
        gains = {route: gain for route, gain in gains.items() if route in proven}
        if not gains:
            return None, None
        route = next(iter(gains))
        if gains.get("row", 0) > gains[route] * _ROW_MUST_GAIN:
            route = "row"
        return shared_layout(batch, lengths, prompt_width, tail_width, shortest == prompt_width), route

    def _overhead(self, backbone: nn.Module) -> float:
        if id(backbone) not in self._overheads:
            self._overheads[id(backbone)] = launch_overhead(backbone)
        return self._overheads[id(backbone)]

    def _allowed(self, backbone: nn.Module, tapped: bool) -> tuple[str, ...]:
        """The routes that suit the state of a backbone, the frugal one first.

        Transformers drops the cache under checkpointing; taps see whole rows in one call; sharded parameters are gathered
        once a call, and all ranks must make equally many.
        """
        if tapped or (backbone.training and is_checkpointing(backbone)) or _is_sharded(backbone):
            return ("row",)
        return ROUTES

    def _proven(self, backbone: nn.Module, allowed: tuple[str, ...]) -> list[str]:
        """The allowed routes that are proven for a backbone as it stands; where there is none the reason is logged once."""
        key = (id(backbone), backbone.training, allowed)
        if key not in self._routes:
            reasons = {route: self._why_not(route, backbone) for route in allowed}
            self._routes[key] = [route for route, reason in reasons.items() if reason is None]
            if not self._routes[key]:
                self._refuse("; ".join(dict.fromkeys(str(reason) for reason in reasons.values())))
        return self._routes[key]

    def _why_not(self, route: str, backbone: nn.Module) -> str | None:
        dropout = _active_dropout(backbone)
        if dropout is not None:
            return f"dropout is active in {dropout}, and would be the same for both responses (disable_dropout=False)"
        reason = self._proof(route, backbone, backbone.training and is_checkpointing(backbone))
        # further calls of sharded parameters would have to happen on all ranks at once
        return reason if reason is not None or _is_sharded(backbone) else why_own_model_differs(route, backbone)

    def _proof(self, route: str, backbone: nn.Module, checkpointed: bool) -> str | None:
        """The proof on a stand-in, once for policy and reference alike."""
        config: Any = backbone.config
        key = (route, checkpointed, type(backbone), config._attn_implementation, config.to_json_string())
        if key not in self._proofs:
            self._proofs[key] = why_unequal(route, backbone, checkpointed)
        return self._proofs[key]

    def _refuse(self, reason: str) -> None:
        if self.mode == "on":
            raise ValueError(
                f"share_prefix='on' cannot compute prompts once: {reason}. Set share_prefix to 'auto' or 'off'."
            )
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("share_prefix='auto' computes prompts once for each response: %s.", reason)


def _active_dropout(backbone: nn.Module) -> str | None:
    """Name of a module whose dropout acts now."""
    for name, module in backbone.named_modules():
        if module.training and isinstance(module, nn.Dropout) and module.p > 0:
            return name
    return None


def _is_sharded(backbone: nn.Module) -> bool:
    """Whether parameters are split over processes (FSDP, FSDP2, ZeRO-3), be they gathered at the moment."""
    for module in backbone.modules():  # one walk: a step asks for both backbones
        if isinstance(module, (FSDPModule, FullyShardedDataParallel)):
            return True
        if any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in module._parameters.values()):
            return True
    return False


SEPARATE = PrefixSharing("off")
