"""The model card: what the run was, beside TRL's own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsepo.masks import Masker
from sparsepo.objectives import Objective
from sparsepo.redaction import redacted


def paper_of(objective: Objective) -> dict[str, str]:
    """Title, arXiv id and a BibTeX entry for an objective, as TRL's model card wants them."""
    title, number = objective.paper
    year = 2000 + int(number[:2])
    key = f"arxiv{number.replace('.', '_')}"
    citation = (
        f"@misc{{{key},\n    title         = {{{{{title}}}}},\n    year          = {year},\n"
        f"    eprint        = {{{number}}},\n    archivePrefix = {{arXiv}},\n}}"
    )
    return {"title": title, "id": number, "citation": citation}


def describe_run(objective: Objective, masker: Masker | None, versions: dict[str, str]) -> str:
    """A Markdown section with objective, mask and library settings."""
    lines = ["", "## Preference optimisation", "", f"Trained with sparsepo {versions['sparsepo']}.", ""]
    lines += ["| setting | value |", "|---|---|", f"| objective | {objective.name} |"]
    lines += [f"| {name} | {value} |" for name, value in objective.settings().items()]
    if masker is not None:
        lines.append(f"| mask | {masker.kind} |")
        lines += [f"| mask {name} | {value} |" for name, value in masker.settings().items()]
        lines += [
            "",
            "The token mask is saved in `mask/` and is not needed to use the model. To look at it:",
            "",
            "```python",
            "from sparsepo import load_mask",
            "",
            'mask = load_mask("path/to/this/folder")',
            "```",
        ]
    return "\n".join(lines) + "\n"


def append_to_card(folder: str, section: str) -> None:
    """Append a section to the README.md that TRL wrote, once, before its citations."""
    path = Path(folder) / "README.md"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    marker = "## Citations"
    text = redacted(text)
    text = text.replace(marker, section.lstrip("\n") + "\n" + marker, 1) if marker in text else text + section
    path.write_text(text, encoding="utf-8")


def card_tags(objective: Objective, masker: Masker | None) -> list[str]:
    """Tags of the model card."""
    tags: list[Any] = ["sparsepo", objective.name]
    if masker is not None:
        tags.append(f"mask-{masker.kind}")
    return tags
