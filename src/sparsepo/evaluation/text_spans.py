"""Where in a text its tokens and words stand: marks on characters become marks on tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .token_table import Batch

Span = tuple[int, int]  # first character, one past the last
WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_WINDOW = 4  # tokens that are decoded together: spacing and multi-byte characters depend on their neighbours
_UNFINISHED = "�"  # what bytes decode to that begin a character

# Words without content of their own: pronouns, determiners, auxiliaries, conjunctions, prepositions
_FUNCTION_TEXT = """
    a an the this that these those some any no every each either neither both all another such what which who whom whose
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
    ourselves they them their theirs themselves one ones someone anyone everyone nobody something anything everything
    nothing am is are was were be been being do does did doing done have has had having will would shall should can could
    may might must ought i'm i've i'd i'll you're you've you'd you'll he's he'd he'll she's she'd she'll it's it'd it'll
    we're we've we'd we'll they're they've they'd they'll that's there's here's what's who's isn't aren't wasn't weren't
    don't doesn't didn't haven't hasn't hadn't won't wouldn't shan't shouldn't can't cannot couldn't mustn't mightn't not
    and or but nor so yet for if because although though while whereas unless until since when whenever where wherever
    whether than as of in on at by to from with without within into onto upon out off over under about above below between
    among through during before after against toward towards around behind beside besides beyond near up down along across
    per via then there here now just only also too very even again ever never still already how why br
"""
FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of a sequence of tokens, and where in it each stands; special tokens stand nowhere (empty spans).

    Tokens are decoded beside their left neighbours, so that this needs no offsets and works for any tokenizer. Of a
    character that several tokens make up, the last one has it.
    """
    special = set(tokenizer.all_special_ids)
    text, spans, before = "", [], []
    pending = ""  # what the window decodes to so far
    for token in ids:
        if token in special:
            spans.append((len(text), len(text)))
            continue
        before.append(token)
        decoded = _decode(tokenizer, before)
        piece = "" if decoded.endswith(_UNFINISHED) else decoded[len(pending) :]
        spans.append((len(text), len(text) + len(piece)))
        text += piece
        if not decoded.endswith(_UNFINISHED):
            # the window moves on only between characters
            before = before[-_WINDOW:]
            pending = _decode(tokenizer, before)
    return text, spans


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    decoded: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return decoded


def words_of(text: str) -> list[tuple[str, Span]]:
    """The words of a text, lower case, with their places."""
    return [(match.group().lower().replace("’", "'"), match.span()) for match in WORD.finditer(text)]


def first_tokens(spans: Sequence[Span], marked: Iterable[Span]) -> list[bool]:
    """Marks the token that holds the first character of each marked stretch of text: the one that decides for it."""
    marks = [False] * len(spans)
    starts = sorted(start for start, _ in marked)
    index = 0
    for start in starts:
        while index < len(spans) and spans[index][1] <= start:
            index += 1
        if index < len(spans) and spans[index][0] <= start:
            marks[index] = True
    return marks


def response_start(batch: Batch, row: int) -> int:
    """Index of the first response token of a collated sequence."""
    completion = batch["completion_mask"][row]
    return int(completion.long().argmax())


def real_tokens(batch: Batch, row: int) -> list[int]:
    """Indices of the tokens of a collated sequence that are no padding."""
    return torch.nonzero(batch["attention_mask"][row].cpu()).flatten().tolist()


def as_targets(marks: Sequence[Sequence[bool]], indices: Sequence[Sequence[int]], shape: torch.Size) -> Tensor:
    """Marks on tokens of B sequences → bool (B, T) on target tokens: column t belongs to the token at t + 1.

    Args:
        marks: of each sequence's real tokens.
        indices: their positions.
        shape: of ``input_ids``, (B, T + 1).
    """
    result = torch.zeros(shape, dtype=torch.bool)
    for row, (own, places) in enumerate(zip(marks, indices, strict=True)):
        result[row, list(places)] = torch.tensor(list(own), dtype=torch.bool)
    return result[:, 1:]
