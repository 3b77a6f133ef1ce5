"""Dataset rows → token ids, row identities and per-token weights, before and after TRL's own tokenisation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from sparsepo.data.hh import is_hh_transcript, split_hh_row

from .collator import ROW_ID, WEIGHT_COLUMNS
from .trl_bridge import common_prefix_length, is_conversational

Rows = Any  # Dataset | IterableDataset
_GIVEN_WEIGHTS = {"chosen": "chosen_weights", "rejected": "rejected_weights"}


def is_prepared(dataset: Rows) -> bool:
    """Whether the rows are tokenised already (preparation is then skipped)."""
    return "prompt_ids" in next(iter(dataset))


def mapped(dataset: Rows, function: Callable[..., Any], description: str, **kwargs: Any) -> Rows:
    """``dataset.map`` with a progress line where the dataset's kind has one."""
    if isinstance(dataset, Dataset):
        kwargs["desc"] = description
    return dataset.map(function, **kwargs)


def before_tokenisation(dataset: Rows, name: str) -> Rows:
    """Number the rows and split HH transcripts at their last assistant turn.

    TRL's longest-common-prefix rule would move the first words of an answer into the prompt wherever both answers begin
    alike (22 % of HH rows). Transcripts whose prompts differ between chosen and rejected are an error here; the data
    check drops and reports them.
    """
    first = next(iter(dataset))
    if ROW_ID in first and (isinstance(first[ROW_ID], bool) or not isinstance(first[ROW_ID], int)):
        raise ValueError(
            f"The {name} dataset has a column {ROW_ID!r} that holds {first[ROW_ID]!r}; rows are numbered by whole numbers "
            "there. Rename the column."
        )
    # a stream is not numbered: each loader worker would start at 0. Its rows are told apart by their tokens.
    if ROW_ID not in first and isinstance(dataset, Dataset):
        dataset = mapped(dataset, lambda row, index: {ROW_ID: index}, f"Numbering {name} rows", with_indices=True)
    if "prompt" not in first and is_hh_transcript(first):
        dataset = mapped(dataset, _split_transcript, f"Splitting {name} transcripts")
    return dataset


def _split_transcript(row: dict[str, Any]) -> dict[str, Any]:
    parts = split_hh_row(row)
    if parts is None:
        raise ValueError(
            f"Row {row[ROW_ID]}: 'chosen' and 'rejected' are dialogue transcripts whose prompts differ, or without an "
            "'Assistant:' turn; run `sparsepo data check` on the file, which drops and lists such rows."
        )
    return dict(parts)


def after_tokenisation(dataset: Rows, name: str, tokenizer: Any, wants_weights: bool) -> Rows:
    """Align given weights to tokens."""
    first = next(iter(dataset))
    if wants_weights and WEIGHT_COLUMNS[0] not in first:
        for column in _GIVEN_WEIGHTS.values():
            if column not in first:
                raise ValueError(
                    f"mask='data' reads the columns chosen_weights and rejected_weights; the {name} dataset has no "
                    f"{column!r}. Each holds a number per response token or spans [start, end, weight]."
                )
        dataset = mapped(dataset, align_row, f"Aligning weights of {name} dataset", fn_kwargs={"tokenizer": tokenizer})
    return dataset


def cut_and_filter(dataset: Rows, name: str, args: Any) -> Rows:
    """Cut prompts to their last ``max_prompt_length`` tokens, then drop rows whose prompt alone fills ``max_length``.

    In this order: TRL's own filter would drop long prompts before they could be cut.
    """
    if args.max_prompt_length is not None:
        dataset = mapped(
            dataset,
            lambda row: {"prompt_ids": row["prompt_ids"][-args.max_prompt_length :]},
            f"Cutting prompts of {name} dataset",
        )
    if args.max_length is not None and args.truncation_mode == "keep_start":
        kwargs = {"desc": f"Dropping filled rows of {name} dataset"} if isinstance(dataset, Dataset) else {}
        dataset = dataset.filter(lambda row: len(row["prompt_ids"]) < args.max_length, **kwargs)
    return dataset


def align_row(row: dict[str, Any], tokenizer: Any) -> dict[str, list[float]]:
    """Per-token weights of both responses of a tokenised row."""
    aligned = {}
    for side, column in zip(("chosen", "rejected"), WEIGHT_COLUMNS, strict=True):
        where = f"row {row.get(ROW_ID, '?')}, column {_GIVEN_WEIGHTS[side]!r}"
        aligned[column] = token_weights(row, side, tokenizer, where)
    return aligned


def token_weights(row: dict[str, Any], side: str, tokenizer: Any, where: str) -> list[float]:
    """Weights of one response's tokens from numbers (one a token) or from spans of its text's characters.

    A token takes the largest weight among the spans that it touches; a token that no span touches, and the
    end-of-sequence token, take 0. Numbers may leave out the end-of-sequence token that preparation appended.
    """
    given, ids = row[_GIVEN_WEIGHTS[side]], row[f"{side}_ids"]
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{where}: {given!r} must be a list of numbers or of spans [start, end, weight].")
    if given and isinstance(given[0], (list, tuple)):
        return _weights_from_spans(row, side, tokenizer, where)
    weights = [_checked(value, where) for value in given]
    if len(weights) == len(ids) - 1 and ids and ids[-1] == tokenizer.eos_token_id:
        weights.append(0.0)
    if len(weights) != len(ids):
        raise ValueError(f"{where}: {len(weights)} weights for a response of {len(ids)} tokens; give one per token.")
    return weights


def _checked(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{where}: weight {value!r} must be a finite number of at least 0.")
    return float(value)


def _weights_from_spans(row: dict[str, Any], side: str, tokenizer: Any, where: str) -> list[float]:
    text, start = _rendered(row, side, tokenizer, where)
    length = len(text) - start
    spans = []
    for span in row[_GIVEN_WEIGHTS[side]]:
        if len(span) != 3 or not 0 <= span[0] < span[1] <= length or any(v != int(v) for v in span[:2]):
            raise ValueError(
                f"{where}: span {list(span)!r} must be [start, end, weight] with 0 <= start < end <= {length}, the "
                "response's length in characters."
            )
        spans.append((int(span[0]) + start, int(span[1]) + start, _checked(span[2], where)))
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("Weights by character spans need a fast tokenizer (one that gives offsets).")
    is_chat = is_conversational(row)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not is_chat)
    ids = list(row["prompt_ids"]) + list(row[f"{side}_ids"])
    if list(encoded["input_ids"]) != ids:
        raise ValueError(f"{where}: the tokens of the text do not match the prepared ids; give one number per token.")
    offsets = encoded["offset_mapping"][len(row["prompt_ids"]) :]
    return [max((w for s, e, w in spans if s < end and begin < e), default=0.0) for begin, end in offsets]


def _rendered(row: dict[str, Any], side: str, tokenizer: Any, where: str) -> tuple[str, int]:
    """Text that was tokenised, and where in it the response's characters begin."""
    if not is_conversational(row):
        return row["prompt"] + row[side], len(row["prompt"])
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    settings = {"tokenize": False, "tools": tools, **row.get("chat_template_kwargs", {})}
    text = tokenizer.apply_chat_template(row["prompt"] + row[side], **settings)
    opening = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **settings)
    # from where the answer opens: its characters may stand in the template's own marks too
    start = text.find(row[side][0]["content"], common_prefix_length(opening, text))
    if start < 0:
        raise ValueError(f"{where}: the chat template changes the response's text, so that spans cannot be placed.")
    return text, start
