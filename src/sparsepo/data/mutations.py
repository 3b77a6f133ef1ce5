"""Small changes of programs, one at a time and in place: what a passing and a failing solution differ in is known."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# operator or name → what it becomes
_SWAPS = {
    "+": "-", "-": "+", "*": "+", "//": "*", "/": "*", "%": "//", "**": "*",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+=": "-=", "-=": "+=",
    "and": "or", "or": "and", "True": "False", "False": "True", "min": "max", "max": "min", "any": "all", "all": "any",
    "append": "remove", "sorted": "list", "upper": "lower", "lower": "upper", "in": "not in",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A program with one change.

    Args:
        code: the changed program; it parses.
        before, after: the text that was replaced, and what stands there now.
        start: where in both programs the change begins, in characters.
    """

    code: str
    before: str
    after: str
    start: int

    @property
    def span(self) -> tuple[int, int]:
        """The changed text's place in the new program."""
        return self.start, self.start + len(self.after)


def mutants_of(code: str) -> list[Mutant]:
    """Every program that differs from this one in one operator, comparison, constant, boolean or built-in function.

    Whether a mutant does something else must be tested: some changes do not matter. Programs that tokenize or parse with an
    error have none.
    """
    try:
        ast.parse(code)
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (SyntaxError, tokenize.TokenError, ValueError):
        return []
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for token, previous in zip(tokens, [None, *tokens], strict=False):
        for after in _changes(token, previous):
            place = starts[token.start[0] - 1] + token.start[1]
            changed = code[:place] + after + code[place + len(token.string) :]
            if _parses(changed):
                found.append(Mutant(changed, token.string, after, place))
    return found


def _changes(token: tokenize.TokenInfo, previous: tokenize.TokenInfo | None) -> Iterator[str]:
    text = token.string
    if token.type == tokenize.NUMBER and text.isdecimal():
        yield str(int(text) + 1)
        if text != "0":
            yield str(int(text) - 1)
    elif token.type in (tokenize.OP, tokenize.NAME) and text in _SWAPS:
        # "for x in y" is no comparison, and a name after "def" or "." of another meaning is left alone where it matters
        if text == "in" and previous is not None and keyword.iskeyword(previous.string):
            return
        yield _SWAPS[text]


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


def choose(mutants: Sequence[Mutant], rng: np.random.Generator, count: int = 1) -> list[Mutant]:
    """Some of them, of different places as far as there are."""
    order = rng.permutation(len(mutants)).tolist()
    chosen: list[Mutant] = []
    seen: set[int] = set()
    for place in [*order, *order]:
        if len(chosen) == count:
            break
        mutant = mutants[place]
        if mutant.start not in seen or (len(seen) == len({m.start for m in mutants}) and mutant not in chosen):
            chosen.append(mutant)
            seen.add(mutant.start)
    return chosen
