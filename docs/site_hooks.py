"""What the site adds to the pages of docs/: the notebooks, and the tables of benchmarks/, which the pages link to."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
CHANGED = ("beta", "bf16")  # settings of TRL's whose default is another here
ROLE = re.compile(r":(?:class|meth|func|attr|mod|data):(?=<code>)")  # of docstrings that other readers resolve
OUTSIDE = re.compile(r"\]\((?:\.\./)+benchmarks/")


def on_files(files: Files, config: Any) -> Files:
    """Notebooks become pages; benchmarks/**.md and their plots are pages and files of the site."""
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        found = files.get_file_from_path(f"notebooks/{notebook.name}")
        if found is not None:
            files.remove(found)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=_page_of(notebook)))
    for path in sorted((ROOT / "benchmarks").rglob("*")):
        if path.suffix in (".md", ".png", ".svg", ".json") and path.is_file():
            name = path.relative_to(ROOT).as_posix()
            if name == "benchmarks/README.md":
                name = "benchmarks/index.md"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "reference/settings.md", content=_settings_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links to benchmarks/ and to notebooks lead to where the site has them; links from benchmarks/ to docs/ lead back."""
    depth = page.file.src_uri.count("/")
    if page.file.src_uri.startswith("benchmarks/"):
        markdown = re.sub(r"\]\((?:\.\./)+docs/", f"]({'../' * depth}", markdown)
    markdown = OUTSIDE.sub(f"]({'../' * depth}benchmarks/", markdown)
    markdown = re.sub(r"(\]\([\w./]*notebooks/\w+|\]\(\w+)\.ipynb\)", r"\1.md)", markdown)
    return markdown.replace("benchmarks/README.md", "benchmarks/index.md")


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Names in docstrings without their roles."""
    return ROLE.sub("", html)


def _settings_page() -> str:
    """Every setting that SparsePOConfig adds to TRL's DPOConfig, with its default and what it means."""
    from dataclasses import fields

    from trl import DPOConfig

    from sparsepo import SparsePOConfig

    theirs = {field.name for field in fields(DPOConfig)}
    lines = [
        "# Settings",
        "",
        "What `SparsePOConfig` adds to TRL's `DPOConfig`; unset values follow from objective and preset.",
        "",
    ]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for field in fields(SparsePOConfig):
        if field.name not in theirs or field.name in CHANGED:
            default = "unset" if field.default is None else f"`{field.default!r}`"
            meaning = " ".join(str(field.metadata.get("help", "")).split()).replace("|", "\\|")
            lines.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _page_of(notebook: Path) -> str:
    """A notebook as Markdown, with the outputs that it was last run with."""
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_filename(str(notebook))
    for name, data in resources.get("outputs", {}).items():
        kind = "svg+xml" if name.endswith(".svg") else "png"
        body = body.replace(f"({name})", f"(data:image/{kind};base64,{base64.b64encode(data).decode()})")
    return str(body)
