"""From a collated batch to what the reference's forward would have left, read from the cache's files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sparsepo.masks import Masker, TokenMasks
from sparsepo.masks.noise import content_hash
from sparsepo.scoring import CachedReference, LMHead

from ..step import ReferenceView
from .plan import EXPECTATION, HIDDEN, NO_KL, CachePlan
from .store import CacheFolder

_OPEN_FILES = 64  # memory-mapped at a time


def sequence_identity(batch: dict[str, Any]) -> Tensor:
    """An identity of each sequence from its tokens and where its response begins, whatever its padding, int64, (R,).

    Row numbers would not do: every data set has a row 0.
    """
    marked = 2 * batch["input_ids"].to(torch.int64) + batch["completion_mask"].to(torch.int64)
    return content_hash(marked, batch["attention_mask"])


class CachedRows:
    """The sequences of one data set, found by their content.

    Args:
        folder: its files, all of them there.
        head: the reference's head where the plan needs one, on the run's device.
    """

    def __init__(self, folder: CacheFolder, head: LMHead | None) -> None:
        self.plan, self.head = folder.plan, head
        self._places: dict[int, tuple[Path, int, int]] = {}  # identity → file, first token, tokens
        for block in folder.blocks:
            path = folder.path / block.file
            with safe_open(path, framework="pt") as file:
                identities, lengths = file.get_tensor("identity"), file.get_tensor("length")
            starts = (lengths.cumsum(0) - lengths).tolist()
            for identity, start, length in zip(identities.tolist(), starts, lengths.tolist(), strict=True):
                self._places.setdefault(identity, (path, start, length))
        self._open = lru_cache(maxsize=_OPEN_FILES)(lambda path: safe_open(path, framework="pt"))

    def knows(self, identities: Iterable[int]) -> bool:
        """Whether all of the sequences are there."""
        return all(identity in self._places for identity in identities)

    def view(self, batch: dict[str, Any], identities: list[int], need_kl: bool, masker: Masker | None) -> ReferenceView:
        """What the reference would have left of a batch, at response tokens; zero elsewhere.

        Args:
            batch: collated batch on the run's device.
            identities: of its sequences.
            need_kl: whether the KL will be formed.
            masker: whose states or masks are wanted.
        """
        response = batch["completion_mask"][:, 1:].bool()
        places = [self._places[identity] for identity in identities]
        self._check_lengths(places, response)
        plan, view = self.plan, ReferenceView()

        def spread(name: str) -> Tensor:
            """An array over the batch's response tokens → (R, T, …)."""
            values = torch.cat([self._open(path).get_slice(name)[start : start + n] for path, start, n in places])
            values = values.to(response.device)
            whole = values.new_zeros(*response.shape, *values.shape[1:])
            whole[response] = values
            return whole

        if plan.kl == HIDDEN and need_kl:
            view.last_hidden = torch.nn.functional.pad(
                spread("hidden"), (0, 0, 0, 1)
            )  # the last position predicts nothing
            view.head, view.shares_head = self.head, plan.head.is_shared
        else:
            view.cached = CachedReference(spread("logps"))
        if plan.kl == EXPECTATION and need_kl:
            assert view.cached is not None
            view.cached.log_normaliser = spread("log_normaliser")
            view.cached.hidden, view.cached.expected_weight = spread("hidden"), spread("expected_weight")
        if plan.layers:
            # at the reading position, where the mask looks for them
            states = torch.nn.functional.pad(spread("states"), _padding(plan))
            view.block_states = list(states.unbind(2))
        if plan.masks:
            assert masker is not None
            view.masks = _finished(masker, [spread(name) for name in plan.masks], response)
        return view

    def _check_lengths(self, places: list[tuple[Path, int, int]], response: Tensor) -> None:
        cached, found = [place[2] for place in places], response.sum(1).tolist()
        if cached != found:
            raise RuntimeError(
                f"The reference cache holds {cached} tokens of a batch's responses, which have {found}: the collator cut "
                "them otherwise when the cache was filled. Delete the cache's folder, or leave precompute_ref False."
            )

    def has_kl(self) -> bool:
        """Whether the KL can be formed."""
        return self.plan.kl != NO_KL


def _padding(plan: CachePlan) -> tuple[int, ...]:
    """Padding of (R, T, L, H) to T + 1 positions: behind for predicting positions, before for the tokens' own."""
    return (0, 0, 0, 0, 0, 1) if plan.position == "predicting" else (0, 0, 0, 0, 1, 0)


def _finished(masker: Masker, arrays: list[Tensor], response: Tensor) -> TokenMasks:
    if len(arrays) == 2:
        return TokenMasks(arrays[0], arrays[1])
    ones = response.to(arrays[0].dtype)
    return TokenMasks(
        ones if masker.mask_on == "kl" else arrays[0],
        ones if masker.mask_on == "reward" else arrays[0],
    )
