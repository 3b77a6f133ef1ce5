"""What the demo shows in the terminal: progress by stage, result tables, responses coloured by their masks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .world import World
from .yardstick import SCORES

# Backgrounds from a small to a large mask; the text stays readable on each
ZERO_STYLE = "dim"
SHADES = ("#1f3348", "#1f5178", "#1c73a8", "#2f9bd0", "#8fd3f4")


class Stages:
    """Announces stages: a live bar on a terminal, plain lines at every quarter elsewhere."""

    def __init__(self, console: Console, count: int) -> None:
        self.console = console
        self.count = count
        self.number = 0

    @contextmanager
    def stage(self, title: str) -> Iterator[Any]:
        """Context of one stage; yields ``report(done, total, values)``."""
        self.number += 1
        label = f"{self.number}/{self.count} {title}"
        start = time.perf_counter()
        if self.console.is_terminal:
            with self._bar(label) as report:
                yield report
        else:
            self.console.print(f"{label} …", markup=False)
            yield self._lines()
        self.console.print(f"[green]✓[/] {label} [dim]({time.perf_counter() - start:.0f} s)[/]")

    @contextmanager
    def _bar(self, label: str) -> Iterator[Any]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(label, total=None, note="")

            def report(done: int, total: int, values: dict[str, float] | None = None) -> None:
                progress.update(task, completed=done, total=total, note=_note(values))

            yield report

    def _lines(self) -> Any:
        quarters = [1]

        def report(done: int, total: int, values: dict[str, float] | None = None) -> None:
            if total and 4 * done >= quarters[0] * total:
                quarters[0] = 4 * done // total + 1
                self.console.print(f"    {done}/{total}  {_note(values)}".rstrip(), markup=False, highlight=False)

        return report


def _note(values: dict[str, float] | None) -> str:
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "mask/reward/sparsity": "zeros"}
    return "  ".join(f"{shown[name]} {values[name]:.3f}" for name in shown if values and name in values)


def policy_table(results: dict[str, Any]) -> Table:
    """Reward of fresh samples before and after, and how far the policy moved."""
    table = Table(title="The policy, on fresh prompts", title_justify="left")
    table.add_column("")
    table.add_column("before (SFT)", justify="right")
    table.add_column(f"after ({results['objective']})", justify="right")
    before, after = results["before"], results["after"]
    table.add_row("reward of samples ± s.e.", _with_error(before["reward"]), _with_error(after["reward"]))
    table.add_row("positive words a response", f"{before['positive']:.2f}", f"{after['positive']:.2f}")
    table.add_row("negative words a response", f"{before['negative']:.2f}", f"{after['negative']:.2f}")
    table.add_row("tokens a response", f"{before['length']:.1f}", f"{after['length']:.1f}")
    table.add_row("sequence KL to SFT ± s.e. (nats)", "0", _with_error(after["kl"]))
    return table


def mask_table(results: dict[str, Any]) -> Table:
    """Size and sparsity of the masks on held-out pairs."""
    masks = results["masks"]
    table = Table(title="The masks, on held-out pairs", title_justify="left")
    table.add_column("")
    for name in masks:
        table.add_column(SCORES[name], justify="right")
    rows = {
        "exact zeros": "sparsity",
        "mean": "mean",
        "mean at preference words": "mean_positive",
        "mean elsewhere": "mean_other",
        "largest": "max",
    }
    for title, key in rows.items():
        style = ".1%" if key == "sparsity" else ".3f"
        table.add_row(title, *(format(summary[key], style) for summary in masks.values()))
    beta = results["effective_beta"]
    table.add_row("effective β = β × mean mask", f"{beta:.3f}", *([""] * (len(masks) - 1)))
    return table


def auc_table(results: dict[str, Any]) -> Table:
    """How well each score orders preference words before the other tokens."""
    table = Table(
        title="AUC for preference words, on held-out pairs",
        title_justify="left",
        caption="content: among content words only. ¹ sees its token. ² P(preference word | prefix) of the reference: all "
        "that a mask can know, which is read before its token.",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for title in ("chosen", "rejected", "chosen content", "rejected content"):
        table.add_column(title, justify="right")
    for name, row in results["auc"].items():
        values = (row[key] for key in ("chosen", "rejected", "chosen_open_class", "rejected_open_class"))
        table.add_row(SCORES[name], *(f"{value:.3f}" for value in values), style="bold" if "mask" in name else "")
    return table


def _with_error(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['se']:.3f}"


def legend(coloured: bool) -> Text:
    """How :func:`masked_text` is to be read."""
    text = Text("reward mask: ")
    if coloured:
        text.append(" zero ", style=ZERO_STYLE)
        text.append(" ")
        for i, shade in enumerate(SHADES):
            text.append({0: " small ", len(SHADES) - 1: " large "}.get(i, "   "), style=_shade_style(shade))
        text.append("   ")
        text.append("preference words", style="bold underline")
    else:
        text.append("word:0 exactly zero, word:1 small … word:9 large; preference words *marked*")
    return text.append(" with their sign (+ −)")


def masked_text(words: Sequence[str], mask: Sequence[float], world: World, largest: float, coloured: bool) -> Text:
    """A response with each word's mask: by background colour, or by a digit where there is no colour.

    Exact zeros (dim, without background, or the digit 0) look different from small values.
    """
    text = Text()
    for i, (word, value) in enumerate(zip(words, mask, strict=True)):
        sign = "+" if word in world.positive_words else "−" if word in world.negative_words else ""
        share = min(value / largest, 1.0) if largest > 0 else 0.0
        if i:
            text.append(" ")
        if coloured:
            shade = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
            style = ZERO_STYLE if value == 0 else _shade_style(shade)
            text.append(word + sign, style=f"{style} bold underline" if sign else style)
        else:
            digit = 0 if value == 0 else 1 + min(int(share * 9), 8)
            text.append(f"{f'*{word}{sign}*' if sign else word}:{digit}")
    return text


def _shade_style(shade: str) -> str:
    return f"{'black' if shade == SHADES[-1] else 'white'} on {shade}"
