"""What kind of text a token is: word, punctuation, digits …; in code what the language says; parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .records import SideRecord

CLASSES = ("word start", "inside word", "number", "punctuation", "whitespace", "special", "other")
# A tagger: text → (first character, one past the last, tag) of its words
Tagger = Callable[[str], list[tuple[int, int, str]]]


def classes_of(side: SideRecord) -> list[str]:
    """A class of :data:`CLASSES` for each token."""
    found, before = [], " "
    for piece, special in zip(side.pieces, side.special, strict=True):
        found.append("special" if special else _class_of(piece, before))
        before = piece[-1:] or before if not special else " "
    return found


def _class_of(piece: str, before: str) -> str:
    text = piece.strip()
    if not text:
        return "whitespace" if piece else "other"  # a part of a character that the next token completes
    if any(c.isalpha() for c in text):
        starts = piece[0].isspace() or not (before.isalnum() or before in "'’_")
        return "word start" if starts else "inside word"
    if any(c.isdigit() for c in text):
        return "number"
    return "other" if text.isalnum() else "punctuation"


def code_classes(side: SideRecord, language: str) -> list[str]:
    """What each token is in a programming language: keyword, name, string, comment, operator …, by its first character.

    Args:
        side: a response; the whole of it is read as code.
        language: as pygments names it.
    """
    text = side.text
    kinds = ["other"] * len(text)
    place = 0
    for kind, piece in lexer_of(language).get_tokens(text):
        name = _code_class(str(kind).removeprefix("Token."))
        kinds[place : place + len(piece)] = [name] * min(len(piece), len(text) - place)
        place += len(piece)
    return _by_offsets(side, kinds, text)


def _code_class(kind: str) -> str:
    head = kind.split(".")[0]
    if kind.startswith("Literal.String"):
        return "string"
    if kind.startswith("Literal.Number"):
        return "number"
    if kind.startswith("Operator.Word"):
        return "keyword"
    known = {
        "Keyword": "keyword",
        "Name": "name",
        "Comment": "comment",
        "Operator": "operator",
        "Punctuation": "punctuation",
    }
    return known.get(head, "whitespace" if "Whitespace" in kind or head == "Text" else "other")


def lexer_of(language: str) -> Any:
    """Pygments' lexer that keeps every character. Raises ``ValueError`` for a language that it does not know."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound as error:
        raise ValueError(
            f"language={language!r} is unknown to pygments; python and javascript are two it knows."
        ) from error


def speech_classes(side: SideRecord, tagger: Tagger) -> list[str]:
    """The part of speech of the word that each token belongs to; "–" where there is none."""
    text = side.text
    kinds = ["–"] * len(text)
    for start, end, tag in tagger(text):
        kinds[start:end] = [tag] * (end - start)
    return _by_offsets(side, kinds, text)


def _by_offsets(side: SideRecord, kinds: Sequence[str], text: str) -> list[str]:
    """The kind of each token's first character that is no space."""
    found = []
    for (start, end), special in zip(side.offsets().tolist(), side.special, strict=True):
        while start < end - 1 and text[start].isspace():
            start += 1
        found.append("special" if special else kinds[start] if start < end else "other")
    return found


def find_tagger() -> tuple[Tagger | None, str]:
    """A part-of-speech tagger that is installed, and its name; (None, what to install) where there is none."""
    for find in (_spacy_tagger, _nltk_tagger):
        tagger, name = find()
        if tagger is not None:
            return tagger, name
    return None, "no tagger: install spacy with en_core_web_sm, or nltk with its averaged_perceptron_tagger_eng"


def _spacy_tagger() -> tuple[Tagger | None, str]:
    try:
        import spacy

        pipeline = spacy.load("en_core_web_sm", disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError):
        return None, ""
    return lambda text: [(t.idx, t.idx + len(t), t.pos_) for t in pipeline(text) if not t.is_space], "spacy"


def _nltk_tagger() -> tuple[Tagger | None, str]:
    try:
        import nltk

        nltk.pos_tag(["word"], tagset="universal")
    except (ImportError, LookupError):
        return None, ""
    from sparsepo.evaluation.text_spans import WORD

    def tag(text: str) -> list[tuple[int, int, str]]:
        words = [(match.group(), match.span()) for match in WORD.finditer(text)]
        tags = nltk.pos_tag([word for word, _ in words], tagset="universal")
        return [(*span, kind) for (_, span), (_, kind) in zip(words, tags, strict=True)]

    return tag, "nltk"
