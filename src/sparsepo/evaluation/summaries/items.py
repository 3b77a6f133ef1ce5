"""What is judged: the summaries of each prompt, with the document and the references that they are held to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SummaryItem:
    """One prompt and its summaries.

    Args:
        prompt: what identifies the row; sets are compared on equal prompts.
        document: the text that a summary must be faithful to.
        summaries: one or more summaries of it: samples of one model at one temperature.
        references: texts that count as right; none: metrics that need them leave the prompt out.
    """

    prompt: str
    document: str
    summaries: tuple[str, ...]
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.summaries:
            raise ValueError(f"Prompt {self.prompt[:60]!r} has no summary; leave it out.")


@dataclass(frozen=True)
class SummarySet:
    """Summaries of one source (a model at a temperature, a file).

    Args:
        name: shown in tables.
        items: one a prompt, no prompt twice.
        temperature: of sampling, where it is known.

    Raises:
        ValueError: no items, or a prompt twice.
    """

    name: str
    items: tuple[SummaryItem, ...]
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"{self.name}: there are no summaries.")
        prompts = [item.prompt for item in self.items]
        if len(set(prompts)) < len(prompts):
            raise ValueError(f"{self.name}: a prompt occurs twice; give all its summaries as one item.")

    @property
    def label(self) -> str:
        """Name, with the temperature where there is one."""
        return self.name if self.temperature is None else f"{self.name} T={self.temperature:g}"

    def fingerprint(self, *settings: object) -> str:
        """Changes where a text or one of the settings does."""
        rows = [(i.prompt, i.document, i.summaries, i.references) for i in self.items]
        return text_hash(json.dumps([rows, *settings], default=str))


def text_hash(text: str) -> str:
    """Sixteen hexadecimal digits for a text."""
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def own_references(items: Sequence[SummaryItem]) -> int:
    """How many summaries are among their own references word for word: overlap with those says nothing."""
    return sum(
        summary.strip() in {reference.strip() for reference in item.references}
        for item in items
        for summary in item.summaries
    )
