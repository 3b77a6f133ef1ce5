"""Completions that end at a text: while they are generated, and exactly afterwards."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

_SLACK = 8  # tokens looked at beyond one for each character of the longest stop text


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts; all of it if it holds none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


class StopTexts:
    """Stop texts of one tokenizer.

    Args:
        tokenizer: decodes what was generated.
        stop: the texts; none: nothing is ever cut.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.window = max(map(len, self.stop), default=0) + _SLACK

    def criteria(self, prompt_width: int) -> StoppingCriteriaList:
        """For ``generate``: a row is done when what was generated holds a stop text."""
        return StoppingCriteriaList([_Criterion(self, prompt_width)] if self.stop else [])

    def cut(self, tokens: list[int], text: str) -> tuple[list[int], str, bool]:
        """The tokens up to that with which a stop text was complete, the text before it, and whether there was one."""
        cut = cut_at(text, self.stop)
        if len(cut) == len(text):
            return tokens, text, False
        count = 1 + bisect.bisect_left(range(1, len(tokens)), True, key=lambda n: self.found_in(tokens[:n]))
        return tokens[:count], cut, True

    def found_in(self, tokens: Sequence[int]) -> bool:
        """Whether tokens hold a stop text."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return any(one in text for one in self.stop)


class _Criterion(StoppingCriteria):
    def __init__(self, texts: StopTexts, prompt_width: int) -> None:
        self.texts, self.prompt_width = texts, prompt_width
        self.done: list[bool] | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # a stop text ends in the newest token: only the last ones need be looked at
        rows = input_ids[:, max(self.prompt_width, input_ids.shape[1] - self.texts.window) :].tolist()
        done = self.done or [False] * len(rows)
        self.done = [was or self.texts.found_in(row) for was, row in zip(done, rows, strict=True)]
        return torch.tensor(self.done, device=input_ids.device)
