"""Reports: headings, tables and figures on one self-contained page, the figures as PNG and SVG beside it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .page import render

# Okabe and Ito's colours, told apart by most colour-blind readers; both read on white and on dark grounds
COLOURS = ("#2f7fd6", "#d9730d", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c564b", "#7f7f7f")
_INK = "#767f8a"  # of axes and letters in SVG: readable on a white and on a dark page
_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "sparsepo",  # the same figure is the same file
    "svg.fonttype": "none",
    "text.parse_math": False,  # a token may hold a dollar sign
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


@contextmanager
def figure_style() -> Iterator[Any]:
    """matplotlib's pyplot without a display, with the reports' style."""
    import matplotlib
    from cycler import cycler

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    style: Any = {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    with matplotlib.rc_context(style):
        try:
            yield pyplot
        finally:
            pyplot.close("all")


class Document:
    """A report that is written block by block.

    Args:
        title, subtitle: on top of it.
        plots: folder for its figures as PNG and SVG; None: they stand on the page only.
    """

    def __init__(self, title: str, subtitle: str = "", plots: str | os.PathLike[str] | None = None) -> None:
        self.title, self.subtitle = title, subtitle
        self.plots = None if plots is None else Path(plots)
        self._blocks: list[dict[str, Any]] = []

    def heading(self, text: str) -> None:
        """A part's heading."""
        self._blocks.append({"kind": "heading", "text": text, "anchor": f"part-{len(self._blocks)}"})

    def subheading(self, text: str) -> None:
        """A smaller heading."""
        self._blocks.append({"kind": "subheading", "text": text})

    def text(self, text: str) -> None:
        """A paragraph."""
        self._blocks.append({"kind": "text", "text": text})

    def pre(self, text: str) -> None:
        """Text as it stands: commands, settings."""
        self._blocks.append({"kind": "pre", "text": text})

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        texts: Sequence[int] = (0,),
        mono: bool = False,
        folded: str = "",
    ) -> None:
        """A table of texts.

        Args:
            header, rows: its cells.
            texts: columns that are no numbers.
            mono: those columns show text of tokens.
            folded: what to press to see it; "": it is open.
        """
        own = {"header": list(header), "rows": [list(row) for row in rows], "texts": list(texts), "mono": mono}
        self._blocks.append({"kind": "table", "folded": folded, **own})

    def figure(self, figure: Any, name: str, caption: str) -> None:
        """A matplotlib figure, made within :func:`figure_style`; ``name`` is that of its files."""
        if self.plots is not None:
            self.plots.mkdir(parents=True, exist_ok=True)
            figure.savefig(self.plots / f"{name}.png", facecolor="white")
        _recolour(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg = buffer.getvalue()
        if self.plots is not None:
            (self.plots / f"{name}.svg").write_bytes(svg)
        source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
        if not self._blocks or self._blocks[-1]["kind"] != "figures":
            self._blocks.append({"kind": "figures", "figures": []})  # neighbours stand side by side where there is room
        self._blocks[-1]["figures"].append({"source": source, "caption": caption})

    def html(self) -> str:
        """The page."""
        return render(
            "document.html",
            styles=("base.css", "document.css"),
            scripts=("tokens.js", "document.js"),
            data={},
            title=self.title,
            subtitle=self.subtitle,
            blocks=self._blocks,
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all; returns its path."""
        return write_whole(path, self.html())


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file under another name, then give it its own."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _recolour(figure: Any) -> None:
    """Axes and letters in an ink that is seen on white and on dark pages."""
    for axes in figure.axes:
        for spine in axes.spines.values():
            spine.set_color(_INK)
        axes.tick_params(colors=_INK, which="both")
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            text.set_color(_INK)
        if (legend := axes.get_legend()) is not None:
            for text in legend.get_texts():
                text.set_color(_INK)
    for text in figure.texts:
        text.set_color(_INK)


def percent(value: float | None) -> str:
    """A share for a table."""
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(own: dict[str, Any] | None, share: bool = False, digits: int = 3) -> str:
    """An estimate as :meth:`sparsepo.inspection.tally.Estimate.to_json` gives it: value [low, high]."""
    if own is None or own["value"] is None:
        return "–"
    factor, unit, places = (100.0, " %", 1) if share else (1.0, "", digits)
    value = f"{factor * own['value']:.{places}f}"
    if own["low"] is None:
        return value + unit
    return f"{value} [{factor * own['low']:.{places}f}, {factor * own['high']:.{places}f}]{unit}"
