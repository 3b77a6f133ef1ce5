"""Probabilities of entailment between sentences, from a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sparsepo.evaluation.generation import evaluating

from .bert import max_tokens

_KEPT_PAIRS = 200_000
_ENTAILMENT = ("entailment", "entail", "entails", "entailed")


class Entailment(Protocol):
    """What faithfulness needs of a model."""

    def pieces(self, sentence: str) -> list[str]:
        """The sentence, or the parts of it that the model can read."""
        ...

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """P(the second text follows from the first) for each pair, (N,)."""
        ...


class NliModel:
    """Entailment by a classifier of premise and hypothesis.

    Args:
        model: a Hugging Face sequence classifier that names its labels.
        tokenizer: its tokenizer.
        batch_size: pairs a batch; no effect on the result beyond rounding.

    Raises:
        ValueError: none of the labels is called entailment, or several are.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 32) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.label = entailment_label(model.config.id2label)
        # sentences are measured before they are split, so that its warning about long ones would always be false
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        length = min(max_tokens(model.config), int(tokenizer.model_max_length))
        self.max_length = length
        # premise and hypothesis may each take half of what the special tokens leave
        self.piece_length = (length - tokenizer.num_special_tokens_to_add(pair=True)) // 2
        self._known: dict[tuple[str, str], float] = {}
        self._pieces: dict[str, list[str]] = {}  # of sentences that are too long

    @property
    def chunked(self) -> int:
        """How many sentences were read in parts."""
        return len(self._pieces)

    @classmethod
    def load(cls, name: str, device: str | None = None, batch_size: int = 32) -> NliModel:
        """From a hub id or folder; on a GPU where there is one, unless ``device`` says otherwise."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32).to(device)
        return cls(model, AutoTokenizer.from_pretrained(name), batch_size)

    def pieces(self, sentence: str) -> list[str]:
        """The sentence; where it has too many tokens, parts of it at words, counted in ``chunked``."""
        if sentence in self._pieces:
            return self._pieces[sentence]
        if self._length(sentence) <= self.piece_length:
            return [sentence]
        found, current = [], ""
        for word in sentence.split():
            longer = f"{current} {word}" if current else word
            if current and self._length(longer) > self.piece_length:
                found.append(current)
                longer = word
            current = longer
        self._pieces[sentence] = [*found, current]
        return self._pieces[sentence]

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """P(hypothesis follows from premise) for each (premise, hypothesis), (N,); repeated pairs cost nothing."""
        if len(self._known) > _KEPT_PAIRS:
            self._known.clear()
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        missing.sort(key=lambda pair: len(pair[0]) + len(pair[1]))  # like lengths together: less padding
        with evaluating(self.model):
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                self._known.update(zip(batch, self._batch(batch), strict=True))
        return np.array([self._known[pair] for pair in pairs], dtype=np.float64)

    def _batch(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        inputs = self.tokenizer(
            [premise for premise, _ in pairs],
            [hypothesis for _, hypothesis in pairs],
            padding=True,
            truncation=True,  # of single words longer than the limit; sentences are split before
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)
        probabilities: list[float] = self.model(**inputs).logits.float().softmax(-1)[:, self.label].tolist()
        return probabilities

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def entailment_label(id2label: dict[int, str]) -> int:
    """Which output of a classifier is entailment, by the label's name.

    Raises:
        ValueError: no label is called entailment (or entail), or more than one is; labels such as LABEL_0 are not guessed.
    """
    found = [place for place, name in id2label.items() if str(name).strip().lower() in _ENTAILMENT]
    if len(found) != 1:
        raise ValueError(
            f"The NLI model's labels are {', '.join(map(str, id2label.values()))}; exactly one must be called 'entailment'. "
            "Name them in the id2label of its config.json, or give another model."
        )
    return int(found[0])
