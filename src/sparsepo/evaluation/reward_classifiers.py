"""Rewards by sequence classifiers of transformers: the probability of a class, or the number of a reward model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsepo.data.joining import joined
from sparsepo.loading import positions_in

from .generation import Prompt, evaluating
from .rewards import Reward

OUTPUTS = ("probability", "logit")
READS = ("both", "completion")
DEFAULT_LABEL = "positive"
SETTINGS_FILE = "reward_model.json"  # beside the weights of a reward model that was trained here
# RoBERTa counts positions from behind the padding token's
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer")
_NO_LIMIT = 10**6  # a tokenizer without a limit names a huge one


@dataclass(frozen=True)
class TextEncoder:
    """A text as a classifier reads it, in training and when it scores.

    Args:
        tokenizer: of the classifier.
        max_length: the beginning of a longer text is cut; special tokens that open it stay.
        append_end: end with the end token, which a decoder's classifier reads.
    """

    tokenizer: Any
    max_length: int
    append_end: bool = False

    def __call__(self, text: str, special: bool = True) -> tuple[list[int], bool]:
        """Token ids, and whether the text was cut.

        Args:
            text: the text.
            special: let the tokenizer add its special tokens.
        """
        ids = list(self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        if end is not None and (self.append_end or not ids) and ids[-1:] != [end]:
            ids.append(end)
        if not ids:
            raise ValueError(f"The tokenizer of the reward makes no tokens of {text!r}.")
        if len(ids) <= self.max_length:
            return ids, False
        opening = next((place for place, one in enumerate(ids) if one not in self.tokenizer.all_special_ids), 0)
        kept = max(self.max_length - opening, 0)
        return (ids[:opening] + ids[len(ids) - kept :])[: self.max_length], True


class ClassifierReward(Reward):
    """Scores by a sequence classifier.

    Args:
        model: of ``AutoModelForSequenceClassification``; it is run in evaluation mode.
        tokenizer: its tokenizer.
        label: index of the class whose probability is the reward; None: the model's one number is.
        output: ``probability``, or ``logit``: log p − log (1 − p).
        reads: ``both``: prompt and completion as one text (a conversation through the tokenizer's chat template);
            ``completion``: the completion alone.
        batch_size: texts at a time (no effect on the result).
        max_length: of a text in tokens; the beginning of a longer one is cut. None: as many as the model has positions.
        append_end: end every text with the end token, where the model was trained on such texts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        label: int | None,
        *,
        output: str = "probability",
        reads: str = "both",
        batch_size: int = 32,
        max_length: int | None = None,
        append_end: bool = False,
    ) -> None:
        for name, value, known in (("output", output, OUTPUTS), ("reads", reads, READS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")
        for name, count in (("batch_size", batch_size), ("max_length", max_length)):
            if count is not None and count < 1:
                raise ValueError(f"{name}={count} must be at least 1.")
        self.model, self.tokenizer, self.label, self.output = model, tokenizer, label, output
        self.whole, self.batch_size = reads == "both", batch_size
        self.reads = "prompt and completion" if self.whole else "the completion"
        limit = max_length if max_length is not None else text_positions(model, tokenizer)
        self.encode = TextEncoder(tokenizer, limit, append_end)
        self.scored, self.cut = 0, 0
        if model.config.pad_token_id is None:  # without one, decoders look for the last token in the wrong place
            model.config.pad_token_id = _pad_id(tokenizer)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """The class's probability or logit, or the model's number."""
        rows = [self._ids(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        found = [0.0] * len(rows)
        with evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                for row, value in zip(chosen, self._values([rows[row] for row in chosen]), strict=True):
                    found[row] = value
        return found

    def notes(self) -> list[str]:
        """How many texts were cut."""
        if not self.cut:
            return []
        longest = self.encode.max_length
        return [f"{self.cut:,} of {self.scored:,} texts were longer than {longest} tokens: their beginning was cut"]

    def _values(self, rows: Sequence[list[int]]) -> list[float]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), _pad_id(self.tokenizer), dtype=torch.long)
        attention = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            attention[place, : len(row)] = 1
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=attention.to(device)).logits.double().cpu()
        if self.label is None:
            return _list(logits[:, 0])
        logps = logits.log_softmax(-1)
        own = logps[:, self.label]
        if self.output == "probability":
            return _list(own.exp())
        others = logps[:, [place for place in range(logps.shape[1]) if place != self.label]]
        return _list(own - others.logsumexp(-1))

    def _ids(self, prompt: Prompt, completion: str) -> list[int]:
        ids, was_cut = self.encode(*self._text(prompt, completion))
        self.scored += 1
        self.cut += was_cut
        return ids

    def _text(self, prompt: Prompt, completion: str) -> tuple[str, bool]:
        """The text to read, and whether the tokenizer adds its special tokens to it."""
        if not self.whole:
            return completion, True
        if isinstance(prompt, str):
            return "".join(joined(prompt, completion)), True
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"Reward {self.name}: the prompts are conversations and its tokenizer has no chat template; let it read the "
                "completion alone (reads='completion')."
            )
        messages = [*prompt, {"role": "assistant", "content": completion}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False), False


def classifier_reward(
    argument: str,
    *,
    output: str = "probability",
    reads: str | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> ClassifierReward:
    """``MODEL[:LABEL]``: the probability of a class; see :class:`ClassifierReward`.

    Args:
        argument: folder or hub id, and behind a colon the class by its name in ``config.id2label``.
        device: such as ``cuda``; None: a GPU where there is one.
        dtype: of the weights.

    Raises:
        ValueError: no such model, a model without a trained head or with one output only, or an unknown label.
    """
    name, label = _split(argument)
    model, tokenizer, saved = _load(name, device, dtype, trust_remote_code)
    if model.config.num_labels < 2:
        raise ValueError(f"classifier:{name} has one output and no classes; write regression:{name}.")
    index = _label_index(model.config.id2label, label, name)
    own = _settings(saved, reads, max_length)
    return ClassifierReward(model, tokenizer, index, output=output, batch_size=batch_size, **own)


def regression_reward(
    argument: str,
    *,
    reads: str | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> ClassifierReward:
    """``MODEL``: the number of a reward model with one output; see :class:`ClassifierReward`.

    Raises:
        ValueError: no such model, a model without a trained head, or one with several outputs.
    """
    model, tokenizer, saved = _load(argument, device, dtype, trust_remote_code)
    if model.config.num_labels != 1:
        raise ValueError(
            f"regression:{argument} has {model.config.num_labels} outputs ({_names(model.config.id2label)}); a reward is "
            f"one number: write classifier:{argument}:LABEL."
        )
    return ClassifierReward(model, tokenizer, None, batch_size=batch_size, **_settings(saved, reads, max_length))


def _split(argument: str) -> tuple[str, str | None]:
    """Model and label; a folder whose name holds a colon is taken whole."""
    name, colon, label = argument.rpartition(":")
    if not colon or Path(argument).expanduser().is_dir():
        return argument, None
    return name, label


def _label_index(id2label: dict[int, str], label: str | None, name: str) -> int:
    wanted = label or DEFAULT_LABEL
    for index, known in id2label.items():
        if known.lower() == wanted.lower():
            return int(index)
    said = f"label {label!r}" if label else f"a class {DEFAULT_LABEL.upper()}"
    raise ValueError(f"classifier:{name} has no {said}: write classifier:{name}:LABEL with one of {_names(id2label)}.")


def _names(id2label: dict[int, str]) -> str:
    return ", ".join(str(known) for known in id2label.values())


def _load(name: str, device: str | None, dtype: str, trust_remote_code: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and what ``reward_model.json`` says."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    if place == name and (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ValueError(f"reward model {name}: there is no such folder.")
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            place, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"reward model {name} could not be loaded: {' '.join(str(error).split())}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(
            f"reward model {name} lacks weights ({missing}): it is no trained sequence classifier, and its scores would be "
            "random. Train one with `sparsepo reward-model`."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(place) / SETTINGS_FILE
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return model.to(device).eval(), tokenizer, saved


def _settings(saved: dict[str, Any], reads: str | None, max_length: int | None) -> dict[str, Any]:
    """How texts are read: as asked for, else as the model was trained."""
    return {
        "reads": reads or saved.get("reads", "both"),
        "max_length": saved.get("max_length") if max_length is None else max_length,
        "append_end": bool(saved.get("append_end", False)),
    }


def text_positions(model: Any, tokenizer: Any) -> int:
    """Tokens of the longest text that a classifier can read."""
    limits = [math.inf if tokenizer.model_max_length > _NO_LIMIT else tokenizer.model_max_length]
    positions = positions_in(model.config)
    if positions is not None:
        offset = _pad_id(tokenizer) + 1 if model.config.model_type in _OFFSET_POSITIONS else 0
        limits.append(positions - offset)
    return int(min(*limits, _NO_LIMIT))


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _list(values: Tensor) -> list[float]:
    found: list[float] = values.tolist()
    return found
