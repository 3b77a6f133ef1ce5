"""Mutants differ from their program in one place, which they name, and parse."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.data.mutations import choose, mutants_of

PROGRAM = '''def f(xs, n):
    """Adds."""
    total = 0
    for x in xs:  # "+" here is a comment
        if x >= n and x not in (1, 23):
            total += max(x, -n) * 2
    return total == 10 or "a+b"
'''


def test_every_change_is_in_its_place_and_alone() -> None:
    found = mutants_of(PROGRAM)
    for mutant in found:
        ast.parse(mutant.code)
        start, end = mutant.span
        assert mutant.code[start:end] == mutant.after != mutant.before
        assert mutant.code[:start] + mutant.before + mutant.code[end:] == PROGRAM
    assert {(m.before, m.after) for m in found} >= {
        (">=", ">"), ("and", "or"), ("max", "min"), ("*", "+"), ("==", "!="), ("23", "24"), ("23", "22"), ("0", "1"),
    }  # fmt: skip
    assert len({mutant.code for mutant in found}) == len(found)


def test_comments_texts_and_loops_are_left_alone() -> None:
    for mutant in mutants_of(PROGRAM):
        assert '"+" here is a comment' in mutant.code
        assert '"a+b"' in mutant.code
        assert "for x in xs" in mutant.code


@pytest.mark.parametrize("code", ["def f(:", "x = '", "", "\0", "    x\n  y"])
def test_what_is_no_program_has_no_mutants(code: str) -> None:
    assert mutants_of(code) == []


@given(st.text(alphabet="x=+-1 \n:()<", max_size=30))
def test_any_text(code: str) -> None:
    for mutant in mutants_of(code):
        ast.parse(mutant.code)


def test_chosen_mutants_are_of_different_places_and_reproducible() -> None:
    found = mutants_of(PROGRAM)
    chosen = choose(found, np.random.default_rng(0), 5)
    assert len({mutant.start for mutant in chosen}) == 5
    assert choose(found, np.random.default_rng(0), 5) == chosen
    assert len(choose(found, np.random.default_rng(0), 100)) == len({m.start for m in found}) or len(found) <= 100
    assert choose([], np.random.default_rng(0)) == []
