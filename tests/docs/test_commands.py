"""Every command that the pages show is one that the command line takes: its name, and each of its flags."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from sparsepo.cli.base import CommandParser
from sparsepo.cli.main import COMMANDS, OWN_PARSING, SUBCOMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]
NAMES = "|".join(COMMANDS)
COMMAND = re.compile(rf"^(?:[#>$ ]|Command: )*(?:[A-Z_]+=\S* )*sparsepo ((?:{NAMES})\b(?![:,]).*)$", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
WRONG_ON_PURPOSE = {"--mask_sharng", "--warmup_ratio"}


@cache
def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, as ``sparsepo`` makes it."""
    module = importlib.import_module(f"sparsepo.cli.{name.replace(' ', '_').replace('-', '_')}")
    if name in OWN_PARSING:
        return module.parser()
    top = CommandParser(prog="sparsepo")
    subparsers = top.add_subparsers()
    module.add_parser(subparsers)
    return subparsers.choices[name]


def deepest(words: list[str]) -> argparse.ArgumentParser:
    """The parser that reads the flags of a command line."""
    assert words[0] in COMMANDS, f"no command {words[0]}"
    name = " ".join(words[:2]) if words[1:2] and words[1] in SUBCOMMANDS.get(words[0], ()) else words[0]
    parser, rest = parser_of(name), words[len(name.split()) :]
    while rest:
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not inner or rest[0] not in inner[0].choices:
            break
        parser, rest = inner[0].choices[rest[0]], rest[1:]
    return parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    return found | ({"--config", "--help-all"} if parser in [parser_of(name) for name in OWN_PARSING] else set())


def words_of(line: str) -> list[str]:
    """A command's words up to a pipe, a comment or a next command."""
    line = re.split(r"\s[|#]\s|\s#|;|\s{3,}→", line)[0]
    try:
        return shlex.split(line)
    except ValueError:  # a quotation mark of the sentence around it
        return line.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_exist(page):
    text = re.sub(r"\\\n[#>\s]*", " ", page.read_text(encoding="utf-8"))
    commands = [words_of(line) for line in COMMAND.findall(text)]
    commands += [words_of(line) for line in re.findall(r"`sparsepo ([a-z][^`]*)`", text)]
    for words in commands:
        known = flags_of(deepest(words)) | WRONG_ON_PURPOSE
        for flag in FLAG.findall(" ".join(words)):
            assert flag in known, f"{page.name}: sparsepo {' '.join(words)[:80]} has no {flag}"
