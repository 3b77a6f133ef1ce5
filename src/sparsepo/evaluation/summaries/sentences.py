"""Texts → sentences, by rule: the same on every machine, with no model or data to download."""

from __future__ import annotations

import re

# A sentence ends at . ! ? … (and what closes after it) before a blank, at a full stop of East Asian scripts, at a line break
_END = re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n+)")
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "dept", "gov", "est", "inc", "ltd", "vol"}
_ABBREVIATIONS |= {"vs", "e.g", "i.e", "etc", "cf", "approx", "u.s", "u.k", "a.m", "p.m"}
_LAST_WORD = re.compile(r"([\w.]+)\.$")


def split_sentences(text: str) -> list[str]:
    """Sentences of a text in order, without blanks at their ends; pieces without a letter or digit join the one before.

    Abbreviations (Mr., e.g., U.S., single initials) do not end a sentence. Lower case after a full stop is no sign that
    the sentence goes on: posts and their summaries are often written so.
    """
    pieces: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if not match.group().startswith("\n") and _is_abbreviation(text[start : match.end()]):
            continue
        pieces.append(text[start : match.end()].strip())
        start = match.end()
    pieces.append(text[start:].strip())
    found: list[str] = []
    for piece in pieces:
        if any(character.isalnum() for character in piece):
            found.append(piece)
        elif piece and found:
            found[-1] = f"{found[-1]} {piece}"
    return found


def _is_abbreviation(sentence: str) -> bool:
    match = _LAST_WORD.search(sentence)
    if match is None:
        return False
    word = match.group(1)
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return is_initial or word.lower() in _ABBREVIATIONS
