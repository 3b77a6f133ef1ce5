"""Lines of JSON: ended by a line feed and nothing else."""

from __future__ import annotations


def lines_of(text: str) -> list[str]:
    """The lines of a file of JSON lines, empty ones left out.

    ``str.splitlines`` also breaks at U+0085, U+2028 and their like, which stand unescaped within JSON's strings.
    """
    return [line for line in text.split("\n") if line.strip()]
