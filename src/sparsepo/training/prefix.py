"""The shared prefix: each pair's prompt goes through a backbone once, with gradients, wherever that is proven and pays."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

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
)

logger = logging.getLogger(__name__)

# auto shares a batch only where it computes this many times fewer tokens
LEAST_SAVING = {"cache": 1.1, "row": 1.1}


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
        self._routes: dict[tuple[Any, ...], str | None] = {}
        self._proofs: dict[tuple[Any, ...], str | None] = {}
        self._logged: set[str] = set()

    def run(
        self,
        backbone: nn.Module,
        batch: dict[str, Any],
        *,
        states: bool = False,
        router: bool = False,
        activations: dict[str, Any] | None = None,
    ) -> BackboneOutput:
        """The backbone over a collated batch.

        Args:
            backbone: a causal LM without its head.
            batch: 2P sequences, chosen first.
            states: also return the states between blocks.
            router: also return the logits of a mixture of experts' routers.
            activations: what the taps around this call fill, group → (2P, S) arrays after it; None without taps.
        """
        wanted = {"output_hidden_states": True} if states else {}
        if router:
            wanted["output_router_logits"] = True
        layout, route = self._plan(backbone, batch, activations is not None)
        if layout is None:
            return backbone(**forward_arguments(backbone, batch), **wanted)
        if route == "cache":
            return run_cache(backbone, layout, wanted)
        return run_row(backbone, layout, wanted, activations)

    def _plan(self, backbone: nn.Module, batch: dict[str, Any], tapped: bool) -> tuple[SharedLayout | None, str | None]:
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
        width = batch["input_ids"].shape[1]
        saving = 2 * width / (prompt_width + 2 * tail_width)
        if self.mode == "auto" and saving < min(LEAST_SAVING.values()):
            return None, None
        route = self._route(backbone, tapped)
        if route is None or (self.mode == "auto" and saving < LEAST_SAVING[route]):
            return None, None
        return shared_layout(batch, lengths, prompt_width, tail_width), route

    def _route(self, backbone: nn.Module, tapped: bool) -> str | None:
        """The first proven route for a backbone as it stands; None, logged once, where there is none."""
        checkpointed = backbone.training and is_checkpointing(backbone)
        key = (id(backbone), backbone.training, checkpointed, tapped)
        if key not in self._routes:
            self._routes[key], reasons = self._prove(backbone, checkpointed, tapped)
            if self._routes[key] is None:
                self._refuse("; ".join(dict.fromkeys(reasons)))
        return self._routes[key]

    def _prove(self, backbone: nn.Module, checkpointed: bool, tapped: bool) -> tuple[str | None, list[str]]:
        dropout = _active_dropout(backbone)
        if dropout is not None:
            return None, [
                f"dropout is active in {dropout}, and would be the same for both responses (disable_dropout=False)"
            ]
        sharded = _is_sharded(backbone)
        reasons = []
        for route in ROUTES:
            # taps see one call with whole rows; sharded parameters are gathered once a call, on all ranks alike; and
            # transformers drops the cache under checkpointing
            if route == "cache" and (checkpointed or tapped or sharded):
                continue
            reason = self._proof(route, backbone, checkpointed)
            if reason is None and not sharded:
                reason = why_own_model_differs(route, backbone)
            if reason is None:
                return route, reasons
            reasons.append(reason)
        return None, reasons

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
    """Whether parameters are split over processes (FSDP, FSDP2, ZeRO-3)."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in backbone.modules()):
        return True
    return any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in backbone.parameters())


SEPARATE = PrefixSharing("off")
