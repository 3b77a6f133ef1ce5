"""One HTML file that holds pairs and everything about their tokens: opens from disk, asks no network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsepo.data.content import ContentFilter

from .masked_words import announced, masked
from .records import QUANTITIES, STORED, PairRecord, SideRecord

SIGNED = ("log_ratio", "reward_part", "contribution", "running")
_TAIL = 0.99  # the scale's end is this quantile of the sizes, so that one outlier does not pale all the others
_SAMPLE = 200_000  # sizes kept for it


def write_page(
    records: Iterable[PairRecord],
    path: str | os.PathLike[str],
    *,
    title: str = "Token masks",
    subtitle: str = "",
    notes: Sequence[str] = (),
    limit: int | None = None,
    words: ContentFilter | None = None,
) -> int:
    """Write the page.

    Args:
        records: pairs, in order.
        path: of the HTML file.
        title, subtitle: what it shows.
        notes: sentences for its foot.
        limit: at most so many pairs.
        words: masks offensive words.

    Returns:
        Number of pairs on it.
    """
    html, count = page(records, title=title, subtitle=subtitle, notes=notes, limit=limit, words=words)
    Path(path).write_text(html, encoding="utf-8")
    return count


def page(
    records: Iterable[PairRecord],
    *,
    title: str = "Token masks",
    subtitle: str = "",
    notes: Sequence[str] = (),
    limit: int | None = None,
    words: ContentFilter | None = None,
) -> tuple[str, int]:
    """The page as text, and the number of pairs on it; see :func:`write_page`."""
    shown = list(islice(records, limit))
    subtitle, notes = announced(shown, subtitle, notes, words)
    scales: dict[str, list[NDArray[np.float32]]] = {}
    for record in shown:
        add_sizes(scales, record)
    content = {"layers": layers_of(scales), "pairs": [_packed(record) for record in masked(shown, words)]}
    html = render(
        "inspect.html",
        styles=("base.css", "inspect.css"),
        scripts=("tokens.js", "inspect.js"),
        data=content,
        title=title,
        subtitle=subtitle,
        notes=notes,
        groups=list(dict.fromkeys(record.group for record in shown)),
    )
    return html, len(shown)


def render(template: str, *, styles: Sequence[str], scripts: Sequence[str], data: Any, **values: Any) -> str:
    """Fill a template of ``assets/``: everything inline, and a policy that lets nothing else run or load.

    Args:
        template: file of its body; every value is escaped.
        styles, scripts: files of ``assets/``, in order.
        data: JSON types for the page's scripts.
        values: of the template.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    style, script = "\n".join(map(asset, styles)), "\n".join(map(asset, scripts))
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    filled: str = environment.from_string(asset("head.html") + asset(template)).render(
        style=Markup(style), script=Markup(script), policy=policy, data=Markup(embedded(data)), **values
    )
    return filled.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def asset(name: str) -> str:
    """A file of ``assets/``."""
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    """JSON that may stand inside a script element: no character that could end it, none outside ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def packed_side(side: SideRecord, names: Sequence[str] = STORED) -> dict[str, Any]:
    """A side as the pages' scripts unpack it: arrays as base64 of little-endian 32-bit numbers, exact."""
    stored = {name: side.values(name) for name in names}
    return {
        "ids": _base64(side.token_ids.astype("<i4")),
        "pieces": list(side.pieces),
        "special": [int(mark) for mark in side.special],
        "reward": finite(side.reward),
        "values": {name: _base64(values.astype("<f4")) for name, values in stored.items() if values is not None},
    }


def _packed(record: PairRecord) -> dict[str, Any]:
    return {
        "number": record.number,
        "group": record.group,
        "prompt": record.prompt,
        "loss": finite(record.loss),
        "margin": finite(record.margin),
        "beta": record.beta,
        "zeros": record.zeros(),
        "length": len(record.chosen) + len(record.rejected),
        **{name: packed_side(side) for name, side in record.sides().items()},
    }


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return float(value) if np.isfinite(value) else None


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _values(side: SideRecord, name: str) -> NDArray[np.float32]:
    values = side.values(name)
    assert values is not None
    return values[np.isfinite(values)]


def add_sizes(sizes: dict[str, list[NDArray[np.float32]]], record: PairRecord) -> None:
    """Add a pair's |values| by quantity, from which its scale is taken."""
    for name in record.quantities():
        sizes.setdefault(name, []).extend(np.abs(_values(side, name)) for side in record.sides().values())


def layers_of(sizes: dict[str, list[NDArray[np.float32]]]) -> list[dict[str, Any]]:
    """The quantities that a page can colour by, each with its scale, as JSON types."""
    found = [
        {"name": name, "label": QUANTITIES[name], "signed": name in SIGNED, "limit": scale_of(sizes[name])}
        for name in QUANTITIES
        if name in sizes
    ]
    return found or [{"name": "", "label": "no numbers", "signed": False, "limit": 1.0}]


def scale_of(sizes: Sequence[NDArray[np.float32]]) -> float:
    """Where a quantity's colours end: a high quantile of the sizes |value| that are not zero."""
    flat = np.concatenate([*sizes, np.zeros(0, np.float32)])
    flat = flat[flat > 0]
    if not len(flat):
        return 1.0
    flat = flat[:: max(1, len(flat) // _SAMPLE)]
    return float(np.float32(np.quantile(flat, _TAIL)))


def scale_of_records(records: Iterable[PairRecord], name: str) -> float:
    """:func:`scale_of` of one quantity over records that all have it."""
    return scale_of([np.abs(_values(side, name)) for record in records for side in record.sides().values()])
