"""MaPO: SparsePO's loss over activation masks (arXiv 2410.05102, section on mask computation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .sparsepo import SparsePO


@dataclass(frozen=True, kw_only=True)
class MaPO(SparsePO):
    """L = −log σ( β (u − δ) ) with masks read from the reference's activations: m_u = m_d, no gradient through them.

    The loss is SparsePO's; the name stands for its pairing with ``ActivationMask``.
    """

    name: ClassVar[str] = "mapo"
    display_name: ClassVar[str] = "MaPO"
