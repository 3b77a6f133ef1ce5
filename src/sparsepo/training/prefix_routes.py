"""A batch of pairs with each prompt once: its layout, and two ways to run a backbone over it.

- ``cache``: the prompts first, with their keys and values under autograd; then both responses on the repeated cache. Exact
  for every attention that works by row index, windows included. Transformers drops the cache under gradient checkpointing.
- ``row``: one row [prompt | chosen | rejected] with restarted positions and a mask that keeps the two responses apart. One
  call, so that checkpointing and sharded parameters work; wrong where an architecture reads the row index. Attention itself
  goes in two calls where it can (prefix_attention.py).

Both give their results back in the ordinary layout of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.scoring.dense import accepts_position_ids

from .prefix_attention import mark_split

ROUTES = ("cache", "row")


@dataclass
class SharedLayout:
    """P pairs as P prompts and 2P tails; a tail is what follows the common prefix. Tails of a pair are neighbours.

    Prompts are padded on the left and tails on the right, so that a row without its padding has no gap: windows and
    positions by row index then hold too.

    Args:
        prompt_ids, prompt_mask: (P, A).
        tail_ids, tail_mask: (2P, B), row 2p the chosen, row 2p + 1 the rejected.
        prompt_lengths: tokens of each common prefix, (P,).
        index: where each position of the ordinary (2P, S) layout lies in the flattened prompts followed by the flattened
            tails, (2P·S,); positions of padding point at some token.
        shape: (2P, S).
        prompts_are_whole: whether the prompts are known to have no padding.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    tail_ids: Tensor
    tail_mask: Tensor
    prompt_lengths: Tensor
    index: Tensor
    shape: tuple[int, int]
    prompts_are_whole: bool = False

    @property
    def prompt_positions(self) -> Tensor:
        """Position of each prompt token in its sequence, (P, A); padding gets 0."""
        width = self.prompt_ids.shape[1]
        columns = torch.arange(width, device=self.prompt_ids.device)
        return (columns - (width - self.prompt_lengths[:, None])).clamp(min=0)

    @property
    def tail_positions(self) -> Tensor:
        """Position of each tail token in its sequence, (2P, B); padding gets the position of the last token."""
        columns = torch.arange(self.tail_ids.shape[1], device=self.tail_ids.device)
        last = (self.tail_mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        return self.prompt_lengths.repeat_interleave(2)[:, None] + torch.minimum(columns.expand_as(self.tail_ids), last)

    def ordinary(self, prompts: Tensor, tails: Tensor) -> Tensor:
        """(P, A, …) and (2P, B, …) → (2P, S, …); a prompt's values stand in both of its rows."""
        rest = prompts.shape[2:]
        source = torch.cat([prompts.reshape(-1, *rest), tails.reshape(-1, *rest)])
        return source.index_select(0, self.index).view(*self.shape, *rest)


def common_prefix_lengths(batch: dict[str, Any]) -> Tensor:
    """Tokens that the prompts of each pair's two sequences share from their start, (P,)."""
    is_prompt = (batch["completion_mask"].cumsum(-1) == 0) & batch["attention_mask"].bool()
    ids = batch["input_ids"]
    pairs = len(ids) // 2
    equal = (ids[:pairs] == ids[pairs:]) & is_prompt[:pairs] & is_prompt[pairs:]
    return equal.long().cumprod(-1).sum(-1)


def is_right_padded(attention_mask: Tensor) -> Tensor:
    """Whether every row's tokens stand at its start, bool, ()."""
    return (attention_mask[:, 1:] <= attention_mask[:, :-1]).all() & attention_mask[:, 0].bool().all()


def shared_layout(
    batch: dict[str, Any], prompt_lengths: Tensor, prompt_width: int, tail_width: int, whole: bool = False
) -> SharedLayout:
    """The shared layout of a right-padded batch.

    Args:
        batch: collated batch, 2P sequences, chosen first.
        prompt_lengths: from :func:`common_prefix_lengths`; at least 1.
        prompt_width, tail_width: the longest prefix and the longest rest of a sequence (A and B).
        whole: whether all prefixes have the length A.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    pairs, length, device = len(ids) // 2, ids.shape[1], ids.device
    lengths = prompt_lengths

    columns = torch.arange(prompt_width, device=device) - (prompt_width - lengths[:, None])  # (P, A)
    prompt_mask = (columns >= 0).to(mask.dtype)
    # padding repeats the first token: any token will do, and nobody reads it
    prompt_ids = ids[:pairs].gather(1, columns.clamp(min=0))

    both = lengths.repeat_interleave(2)[:, None]
    order = torch.arange(2 * pairs, device=device).view(2, pairs).T.reshape(-1)  # c0 r0 c1 r1 …
    columns = both + torch.arange(tail_width, device=device)  # (2P, B)
    inside = columns < length
    columns = columns.clamp(max=length - 1)
    tail_ids = ids[order].gather(1, columns)
    tail_mask = mask[order].gather(1, columns) * inside

    row = torch.arange(2 * pairs, device=device)[:, None]
    side, pair = row // pairs, row % pairs
    position = torch.arange(length, device=device)
    start = lengths.repeat(2)[:, None]
    in_prompt = pair * prompt_width + (prompt_width - start) + position
    in_tail = pairs * prompt_width + (2 * pair + side) * tail_width + (position - start).clamp(max=tail_width - 1)
    index = torch.where(position < start, in_prompt, in_tail).reshape(-1)
    return SharedLayout(prompt_ids, prompt_mask, tail_ids, tail_mask, lengths, index, (2 * pairs, length), whole)


@dataclass
class BackboneOutput:
    """What a backbone's run leaves, in the ordinary layout; the names are those of transformers' outputs."""

    last_hidden_state: Tensor  # (2P, S, H)
    hidden_states: tuple[Tensor, ...] | None = None  # L + 1 × (2P, S, H)
    router_logits: tuple[Tensor, ...] | None = None  # (2P·S, E) a layer; a prompt counts in both of its rows


def _positions(backbone: nn.Module, positions: Tensor) -> dict[str, Tensor]:
    return {"position_ids": positions} if accepts_position_ids(backbone) else {}


def run_cache(backbone: nn.Module, layout: SharedLayout, wanted: dict[str, bool]) -> BackboneOutput:
    """Prompts with their cache, then the tails on it. ``wanted``: further arguments of the backbone."""
    from transformers import DynamicCache

    cache = DynamicCache(config=backbone.config)
    prompts = backbone(
        input_ids=layout.prompt_ids,
        attention_mask=layout.prompt_mask,
        past_key_values=cache,
        use_cache=True,
        **_positions(backbone, layout.prompt_positions),
        **wanted,
    )
    cache.batch_repeat_interleave(2)
    tails = backbone(
        input_ids=layout.tail_ids,
        attention_mask=torch.cat([layout.prompt_mask.repeat_interleave(2, 0), layout.tail_mask], 1),
        past_key_values=cache,
        use_cache=True,
        **_positions(backbone, layout.tail_positions),
        **wanted,
    )

    def join(a: Tensor, b: Tensor) -> Tensor:
        return layout.ordinary(a, b)

    def rows(values: Tensor, ids: Tensor) -> Tensor:
        return values.reshape(*ids.shape, values.shape[-1])

    output = BackboneOutput(join(prompts.last_hidden_state, tails.last_hidden_state))
    if wanted.get("output_hidden_states"):
        output.hidden_states = tuple(map(join, prompts.hidden_states, tails.hidden_states))
    if wanted.get("output_router_logits"):
        output.router_logits = tuple(
            join(rows(a, layout.prompt_ids), rows(b, layout.tail_ids)).flatten(0, 1)
            for a, b in zip(prompts.router_logits, tails.router_logits, strict=True)
        )
    return output


def run_row(
    backbone: nn.Module, layout: SharedLayout, wanted: dict[str, bool], activations: dict[str, Any] | None = None
) -> BackboneOutput:
    """One row a pair. ``activations`` of a tapped model, group → (P, row) arrays, are put into the ordinary layout."""
    pairs, width = layout.prompt_ids.shape
    positions = torch.cat([layout.prompt_positions, layout.tail_positions.view(pairs, -1)], 1)
    outputs = backbone(
        input_ids=torch.cat([layout.prompt_ids, layout.tail_ids.view(pairs, -1)], 1),
        attention_mask=row_masks(backbone, layout, positions),
        position_ids=positions,
        use_cache=False,
        **wanted,
    )

    def join(values: Tensor) -> Tensor:
        tails = values[:, width:].reshape(2 * pairs, -1, *values.shape[2:])
        return layout.ordinary(values[:, :width], tails)

    output = BackboneOutput(join(outputs.last_hidden_state))
    if wanted.get("output_hidden_states"):
        output.hidden_states = tuple(map(join, outputs.hidden_states))
    if wanted.get("output_router_logits"):
        output.router_logits = tuple(
            join(values.reshape(pairs, -1, values.shape[-1])).flatten(0, 1) for values in outputs.router_logits
        )
    if activations is not None:
        activations.update({group: [join(site) for site in sites] for group, sites in activations.items()})
    return output


def row_masks(backbone: nn.Module, layout: SharedLayout, positions: Tensor) -> Tensor | dict[str, Tensor]:
    """Additive masks of the rows, (P, 1, R, R), by layer type where the architecture has several.

    Windows go by position, not by place in the row.
    """
    config = backbone.config
    pairs = len(layout.prompt_ids)
    tail = layout.tail_ids.shape[1]
    device = positions.device
    part = torch.cat(
        [torch.zeros_like(layout.prompt_ids[0]), torch.arange(1, 3, device=device).repeat_interleave(tail)]
    )
    real = torch.cat([layout.prompt_mask, layout.tail_mask.view(pairs, -1)], 1).bool()
    same = (part[None, :] == 0) | (part[None, :] == part[:, None])  # (R, R)
    queries, keys = positions[:, :, None], positions[:, None, :]  # compared, not subtracted: (P, R, R) in one byte each
    allowed = same & real[:, None, :] & (keys <= queries)
    # a row of padding must see something, or its softmax has no value
    itself = torch.eye(positions.shape[1], dtype=torch.bool, device=device)
    dtype = _mask_dtype(backbone)

    width = layout.prompt_ids.shape[1]

    def additive(sees: Tensor, is_causal: bool) -> Tensor:
        mask = torch.zeros(sees.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_(~(sees | itself), torch.finfo(dtype).min)[:, None]
        if splits_rows(backbone):
            mark_split(mask, width, is_causal)
        return mask

    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or ())
    if window is None or (types and "sliding_attention" not in types):
        return additive(allowed, layout.prompts_are_whole)
    near = additive(allowed & (keys > queries - window), layout.prompts_are_whole and width <= window)
    if not types:
        return near
    return {"full_attention": additive(allowed, layout.prompts_are_whole), "sliding_attention": near}


def splits_rows(backbone: nn.Module) -> bool:
    """Whether attention over a row goes in two calls."""
    return getattr(backbone.config, "_attn_implementation", None) == "sdpa"


def _mask_dtype(backbone: nn.Module) -> torch.dtype:
    """Attention adds the mask to scores of the dtype that it computes in."""
    device = next(backbone.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return backbone.dtype  # type: ignore[return-value]
