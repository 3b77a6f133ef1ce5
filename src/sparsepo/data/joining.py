"""What stands between a prompt and a completion that were stored apart.

Completions of scored files are often stored without the space that separated them from the prompt ("I found it real
shocking" + "when I saw …"): joined as they stand, the last word of the prompt and the first of the text run together.
"""

from __future__ import annotations

import re

from .errors import DataError

# No space behind an open bracket, an opening quote or a dash ...
_OPEN_END = re.compile(r"[\s(\[{“‘\-–—/]\Z")
# ... nor before white space, punctuation that closes, a contraction ('s, n't) or a hyphenated continuation (-owned).
_CLOSED_START = re.compile(
    r"\s|[.,;:!?)\]}%…”’–—/]|['](?:s|t|re|ve|ll|d|m)\b|'(?=\W|\Z)|n't\b|-(?=\S)|<br", re.IGNORECASE
)


def joined(prompt: str, text: str, joiner: str = "auto") -> tuple[str, str]:
    """Prompt and completion whose concatenation reads right.

    A space goes to the completion's start, because tokenizers attach it to the word that follows; any other joiner
    goes to the prompt's end, where it belongs to the frame and not to what is learnt.

    Args:
        joiner: ``auto`` puts one space unless the prompt ends with white space, an open bracket or a dash, or the text
            begins with white space, closing punctuation, a contraction or a hyphenated continuation; ``none``; ``space``;
            or the very characters to put between.

    Raises:
        DataError: the joiner is empty.
    """
    if joiner == "":
        raise DataError("joiner '' is empty; write 'none' to join texts as they stand.")
    if joiner == "none":
        return prompt, text
    if joiner == "auto":
        is_tight = not prompt or not text or _OPEN_END.search(prompt) or _CLOSED_START.match(text)
        return prompt, text if is_tight else f" {text}"
    if joiner in ("space", " "):
        return prompt, f" {text}"
    return prompt + joiner, text
