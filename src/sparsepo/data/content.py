"""A notice before offensive texts, and a filter that masks words of them where texts are shown.

Dialogues collected to make models harmless (HH) and toxicity data hold insults, slurs, threats and sexual content. Here is
a short list of English word stems by category, beside any words of a user's own. It spares a reader the plainest words and
judges nothing: it knows no context, no spelling tricks, no other language and no sentence that is vile in polite words, and
it masks medical, literal and quoting uses too. It is no safety filter; data and training never pass through it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from .report import CheckReport


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Stems: a word that begins with one is masked; with a bar at its end the whole word must be the stem.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "profanity": _words(
        "fuck motherfuck shit bullshit bitch bastard| bastards| asshole arsehole cunt dickhead| prick| pricks|"
    ),
    "sexual": _words(
        "porn rape| raped| rapes| raping| rapist blowjob masturbat pussy| whore slut cum| dildo pedophil paedophil"
    ),
    "slurs": _words(
        "nigg fag| fags| faggot retard| retards| retarded| kike| kikes| spic| spics| chink| chinks| trannie tranny|"
    ),
    "violence": _words("murder behead strangl stab| stabs| stabb mutilat massacre lynch| lynched| lynching torture"),
    "self-harm": _words("suicid"),
}
OWN = "words of your own"
_LOOKED_AT = 500  # rows of a data set, for its notice
_SHOWN_SHARE = 0.01  # of texts, from which a whole data set is announced by its content


class ContentFilter:
    """Finds and masks words.

    Args:
        words: of your own, besides the list: whole words or phrases, whatever their case.
        categories: of the list that count; None: all.

    Raises:
        DataError: an unknown category, or an empty word.
    """

    def __init__(self, words: Sequence[str] = (), categories: Sequence[str] | None = None) -> None:
        chosen = list(CATEGORIES) if categories is None else list(categories)
        if unknown := sorted(set(chosen) - set(CATEGORIES)):
            raise DataError(f"category {', '.join(unknown)} is unknown; choose from {', '.join(CATEGORIES)}.")
        if any(not word.strip() for word in words):
            raise DataError("A word of the filter is empty.")
        patterns = {name: [_stem(stem) for stem in CATEGORIES[name]] for name in chosen}
        if words:
            patterns[OWN] = [rf"{re.escape(word.strip())}(?!\w)" for word in words]
        self._patterns = {
            name: re.compile(rf"(?<!\w)(?:{'|'.join(own)})", re.IGNORECASE) for name, own in patterns.items() if own
        }

    @classmethod
    def from_file(cls, path: str | Path, categories: Sequence[str] | None = None) -> ContentFilter:
        """With a file of words of your own, one a line; lines that begin with # are left out.

        Raises:
            DataError: no such file.
        """
        place = Path(path).expanduser()
        if not place.is_file():
            raise DataError(f"No file {place} of words to mask.")
        lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines()]
        return cls([line for line in lines if line and not line.startswith("#")], categories)

    def mask(self, text: str) -> str:
        """The text with every letter but the first of a word found turned into a dot; as long as before."""
        for pattern in self._patterns.values():
            text = pattern.sub(_dotted, text)
        return text

    def mask_pieces(self, pieces: Sequence[str]) -> list[str]:
        """Parts of one text (tokens), masked as the whole text is."""
        masked = self.mask("".join(pieces))
        found, start = [], 0
        for piece in pieces:
            found.append(masked[start : start + len(piece)])
            start += len(piece)
        return found

    def categories_of(self, text: str) -> list[str]:
        """Categories that a text has words of."""
        return [name for name, pattern in self._patterns.items() if pattern.search(text)]


def content_notice(texts: Iterable[str], words: ContentFilter | None = None) -> str:
    """A sentence to put before texts; "" where there is nothing to say.

    Args:
        texts: that are shown, before they are masked, or a sample of a data set.
        words: the filter that masks them; None: they are shown as they are, and the list alone is looked for.
    """
    own = words or ContentFilter()
    counts: Counter[str] = Counter()
    touched = total = 0
    for text in texts:
        total += 1
        categories = own.categories_of(text)
        touched += bool(categories)
        counts.update(categories)
    if touched <= _SHOWN_SHARE * total:
        return ""
    what = ", ".join(f"{name}: {count}" for name, count in counts.most_common())
    done = (
        "They are masked where texts are shown."
        if words
        else "--content_filter masks such words where texts are shown."
    )
    return (
        "Content notice: these texts may hold offensive, sexual or violent language; words of a short list are in "
        f"{touched} of {total} texts ({what}). {done}"
    )


def shown_text(text: str, words: ContentFilter | None) -> str:
    """The text as it is shown: masked where there is a filter."""
    return text if words is None else words.mask(text)


def announce_content(report: CheckReport, rows: Iterable[Mapping[str, Any]], words: ContentFilter | None) -> None:
    """Put the notice among the notes of a data check, and mask words in its examples.

    Args:
        report: of the check.
        rows: pairs that were checked; the first 500 are looked at.
        words: the filter; None: nothing is masked.
    """
    texts = [
        "\n".join(str(row[name]) for name in ("prompt", "chosen", "rejected") if row.get(name))
        for row in islice(rows, _LOOKED_AT)
    ]
    if notice := content_notice(texts, words):
        report.notes.append(notice)
    for finding in report.findings.values():
        for example in finding.examples:
            example["detail"] = shown_text(example["detail"], words)


def _dotted(match: re.Match[str]) -> str:
    word = match.group()
    return word[0] + re.sub(r"\w", ".", word[1:])


def _stem(stem: str) -> str:
    return rf"{re.escape(stem[:-1])}(?!\w)" if stem.endswith("|") else rf"{re.escape(stem)}\w*"
