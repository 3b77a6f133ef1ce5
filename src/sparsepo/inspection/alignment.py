"""Masks across tokenizers: values of one tokenizer's tokens at the characters of the text, and at another's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .records import SideRecord

Floats64 = NDArray[np.float64]
WeightSpan = tuple[int, int, float]  # first character, one past the last, weight


class TextsDifferError(ValueError):
    """Two records are not of the same text."""


def weight_spans(side: SideRecord, values: NDArray[np.float32], text: str | None = None) -> list[WeightSpan]:
    """The values of a response's tokens at its characters; zeros and special tokens are left out, equal neighbours joined.

    Args:
        side: the response.
        values: one a token, finite and ≥ 0, (n,).
        text: the response as the data has it; None: as the record has it. The record may end earlier (it was cut).

    Raises:
        TextsDifferError: the record is not of this text.
    """
    own = side.text
    whole = own if text is None else text
    shift = 0
    if not whole.startswith(own):
        # a tokenizer may drop, or the record hold, whitespace at the edge
        if not own.strip() or not whole.lstrip().startswith(own.strip()):
            raise TextsDifferError(f"the record's text {own[:40]!r} is not the beginning of {whole[:40]!r}")
        shift = (len(whole) - len(whole.lstrip())) - (len(own) - len(own.lstrip()))
    spans: list[WeightSpan] = []
    for (start, end), value, special in zip(side.offsets().tolist(), values.tolist(), side.special, strict=True):
        first, last = max(start + shift, 0), min(end + shift, len(whole))
        if special or value == 0 or first >= last:
            continue
        if spans and spans[-1][1] == first and spans[-1][2] == value:
            first = spans.pop()[0]
        spans.append((first, last, value))
    return spans


def on_tokens(spans: Sequence[WeightSpan], side: SideRecord, text: str) -> Floats64:
    """Each token's largest weight among the spans that it touches, as ``mask=data`` reads spans; 0 where there is none.

    Args:
        spans: over ``text``.
        side: of the same text, by any tokenizer; (n,) tokens.
        text: that the spans count in.

    Raises:
        TextsDifferError: ``side`` is not of this text.
    """
    at = np.zeros(len(text))
    for start, end, weight in spans:
        at[start:end] = np.maximum(at[start:end], weight)
    found = np.zeros(len(side))
    ones = np.arange(1, len(side) + 1, dtype=np.float32)
    # numbered tokens, so that each stays a span of its own
    for start, end, number in weight_spans(side, ones, text):
        found[int(number) - 1] = at[start:end].max()
    return found
