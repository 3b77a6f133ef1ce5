"""Pairs in a terminal: tokens on a colour scale, zeros unlike small values, digits where there is no colour."""

from __future__ import annotations

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.text import Text

from .records import QUANTITIES, PairRecord, SideRecord

# Blues for what is positive, oranges for what is negative: told apart without red and green; one ink on all of them
POSITIVE = ("#dbe9f6", "#bad6eb", "#89bedc", "#539ecd", "#2b7bba")
NEGATIVE = ("#fee6ce", "#fdd0a2", "#fdae6b", "#fd8d3c", "#e6550d")
ZERO = "dim strike"
_DIGITS = "₁₂₃₄₅₆₇₈₉"
_VISIBLE = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}


def pair_view(record: PairRecord, layer: str, limit: float, coloured: bool = True) -> RenderableType:
    """One pair: prompt, chosen, rejected.

    Args:
        record: the pair.
        layer: a quantity of :data:`QUANTITIES` that both sides have.
        limit: value at which the scale ends, > 0.
        coloured: with colours; without, a digit 1–9 follows each token (0 at exact zeros).
    """
    zeros = record.zeros()
    head = Text(f"pair {record.number}", style="bold")
    head.append(f"  margin {record.margin:.3f}  loss {record.loss:.3f}", style="not bold")
    if zeros is not None:
        head.append(f"  zeros {zeros:.1%}", style="not bold")
    parts: list[RenderableType] = [head, Text(printable(record.prompt), style="dim")]
    for name, side in record.sides().items():
        parts.append(Text(f"{name}  (reward {side.reward:.3f}, {len(side)} tokens)", style="italic"))
        parts.append(side_text(side, layer, limit, coloured))
    return Group(*parts, Text())


def side_text(side: SideRecord, layer: str, limit: float, coloured: bool = True) -> Text:
    """A response's tokens with their values shown; see :func:`pair_view`."""
    values = side.values(layer)
    text = Text()
    for number, (piece, special) in enumerate(zip(side.pieces, side.special, strict=True)):
        value = None if values is None else float(values[number])
        style = style_of(value, limit) if coloured else ""
        text.append(printable(piece), style=f"{style} italic".strip() if special else style)
        if not coloured and value is not None:
            text.append(digit(value, limit))
    return text


def style_of(value: float | None, limit: float) -> str:
    """Rich style of a value; nothing where there is none or it is not finite."""
    if value is None or not np.isfinite(value):
        return ""
    if value == 0:
        return ZERO
    shades = POSITIVE if value > 0 else NEGATIVE
    return f"black on {shades[min(int(abs(value) / limit * len(shades)), len(shades) - 1)]}"


def digit(value: float, limit: float) -> str:
    """The value as one digit: ₀ exactly zero, ₁ just above, ₉ at the scale's end and beyond; − before negative ones."""
    if not np.isfinite(value):
        return "?"
    if value == 0:
        return "₀"
    return ("₋" if value < 0 else "") + _DIGITS[min(int(abs(value) / limit * 9), 8)]


def printable(text: str) -> str:
    """Text that cannot move the cursor or turn the line: controls and bidi marks become visible."""
    return "".join(_VISIBLE.get(c, c if c.isprintable() else f"⟨{ord(c):04x}⟩") for c in text)


def legend(layer: str, limit: float, signed: bool, coloured: bool = True) -> Text:
    """What the colours or digits mean."""
    text = Text(f"{QUANTITIES[layer]}:  ")
    if not coloured:
        return text.append(
            f"₀ exactly zero, ₁ just above, ₉ from {limit:.3g} on" + (", ₋ below zero" if signed else "")
        )
    if signed:
        text.append(f" ≤ −{limit:.3g} ", style=f"black on {NEGATIVE[-1]}")
        for shade in reversed(NEGATIVE[:-1]):
            text.append("  ", style=f"on {shade}")
    text.append(" exactly zero ", style=ZERO)
    for shade in POSITIVE[:-1]:
        text.append("  ", style=f"on {shade}")
    return text.append(f" ≥ {limit:.3g} ", style=f"black on {POSITIVE[-1]}")


def shows_colour(console: Console) -> bool:
    """Whether a console has colours (NO_COLOR, files and pipes have none)."""
    return console.color_system is not None and not console.no_color
