"""What is known of one preference pair, token by token: everything that a page, a table or a plot shows.

A record holds the response tokens that were scored, in order, as the model saw them. What an objective does not read is
None, not zeros: DPO has no masks, SimPO no reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Marks = NDArray[np.bool_]

SIDES = ("chosen", "rejected")
STORED = ("reward_mask", "kl_mask", "log_ratio", "kl", "contribution")
# What a token has, in the order in which it is shown; those that are not stored follow from the others.
QUANTITIES = {
    "reward_mask": "reward mask m_u",
    "kl_mask": "KL mask m_d",
    "log_ratio": "log-ratio log π − log π_ref (nats)",
    "kl": "KL(π_ref ‖ π) (nats)",
    "reward_part": "reward mask × log-ratio (nats)",
    "kl_part": "KL mask × KL (nats)",
    "contribution": "contribution to the response's reward",
    "running": "reward up to here",
}


@dataclass(frozen=True, eq=False)
class SideRecord:
    """The response tokens of one side, n of them.

    Args:
        token_ids: (n,).
        pieces: the text of each token, n strings; of a special token its name. Bytes that form no character alone belong
            to the token that completes it.
        special: whether each token is a special one, whose piece is no part of the text, bool (n,).
        reward: implicit reward of the response as the loss uses it.
        reward_mask, kl_mask: m_u and m_d, (n,); None where the objective reads no mask.
        log_ratio: log π − log π_ref, nats, (n,); None without a reference.
        kl: KL(π_ref ‖ π) over the vocabulary, ≥ 0, nats, (n,); None where it was not computed.
        contribution: what each token adds to ``reward``, (n,); their sum is the reward. None where the objective does not
            say (:meth:`sparsepo.objectives.Objective.token_rewards`).
    """

    token_ids: Integers
    pieces: tuple[str, ...]
    special: Marks
    reward: float
    reward_mask: Floats | None = None
    kl_mask: Floats | None = None
    log_ratio: Floats | None = None
    kl: Floats | None = None
    contribution: Floats | None = None

    def __post_init__(self) -> None:
        lengths = {"pieces": len(self.pieces), "special": len(self.special)}
        lengths |= {name: len(own) for name in STORED if (own := getattr(self, name)) is not None}
        for name, length in lengths.items():
            if length != len(self.token_ids):
                raise ValueError(f"{name} has {length} entries, but there are {len(self.token_ids)} tokens.")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """The response, without special tokens."""
        return "".join(piece for piece, special in zip(self.pieces, self.special, strict=True) if not special)

    @property
    def reward_part(self) -> Floats | None:
        """m_u r, nats, (n,): the log-ratio as far as the reward mask lets it count (r itself without masks)."""
        return _product(self.reward_mask, self.log_ratio)

    @property
    def kl_part(self) -> Floats | None:
        """m_d k, nats, (n,); None unless there is a KL mask."""
        return None if self.kl_mask is None else _product(self.kl_mask, self.kl)

    @property
    def running(self) -> Floats | None:
        """The reward up to and with each token, (n,)."""
        if self.contribution is None:
            return None
        return np.cumsum(self.contribution, dtype=np.float64).astype(np.float32)

    def values(self, quantity: str) -> Floats | None:
        """A quantity of :data:`QUANTITIES`, (n,); None where there is none."""
        if quantity not in QUANTITIES:
            raise ValueError(f"quantity={quantity!r} is unknown; choose one of {', '.join(QUANTITIES)}.")
        found: Floats | None = getattr(self, quantity)
        return found

    def zeros(self) -> float | None:
        """Share of tokens whose reward mask is exactly zero; None without masks or tokens."""
        return float((self.reward_mask == 0).mean()) if self.reward_mask is not None and len(self) else None

    def offsets(self) -> Integers:
        """Where each token stands in :attr:`text`: its first character and the one behind its last, (n, 2)."""
        lengths = np.array([len(piece) for piece in self.pieces], dtype=np.int64) * ~self.special
        ends = np.cumsum(lengths)
        return np.stack([ends - lengths, ends], axis=1)


@dataclass(frozen=True, eq=False)
class PairRecord:
    """One pair.

    Args:
        number: its row in the data, from 0.
        group: what it is counted under: a task, a data set, a model; "" where there is one only.
        prompt: as the model saw it.
        prompt_ids: (m,).
        chosen, rejected: the two sides.
        loss: of this pair.
        beta: β of the objective.
    """

    number: int
    group: str
    prompt: str
    prompt_ids: Integers
    chosen: SideRecord
    rejected: SideRecord
    loss: float
    beta: float

    @property
    def margin(self) -> float:
        """Chosen minus rejected implicit reward."""
        return self.chosen.reward - self.rejected.reward

    def sides(self) -> Mapping[str, SideRecord]:
        """By name, chosen first."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    def quantities(self) -> list[str]:
        """The quantities that both sides have."""
        return [name for name in QUANTITIES if all(side.values(name) is not None for side in self.sides().values())]

    def zeros(self) -> float | None:
        """Share of response tokens of both sides whose reward mask is exactly zero."""
        masks = [side.reward_mask for side in self.sides().values() if side.reward_mask is not None]
        values = np.concatenate(masks) if masks else np.zeros(0)
        return float((values == 0).mean()) if len(values) else None


def _product(mask: Floats | None, values: Floats | None) -> Floats | None:
    if values is None:
        return None
    return values if mask is None else mask * values
