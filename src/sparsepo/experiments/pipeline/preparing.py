"""The data stage: rows of any accepted format → training and held-out rows, texts for SFT, prompts to judge policies on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sparsepo.data import PairSettings, format_of, load_preference_data, pairs_from_scored, split_by_prompt
from sparsepo.data.checker import preference_format
from sparsepo.data.formats import PREFERENCE_KINDS, REWARD_NAMES, TEXT_NAMES, first_of
from sparsepo.data.joining import joined
from sparsepo.data.pairs import prompt_key
from sparsepo.data.rules import resolve_row

from .jobs import Job, Row, read_lines, write_lines

KINDS = (*PREFERENCE_KINDS, "scored")
SFT_TEXTS = ("all", "chosen", "none")


def prepare_rows(job: Job) -> Row:
    """Load, split by prompt, and write ``train.jsonl``, ``held_out.jsonl``, ``sft.jsonl`` and ``prompts.jsonl``.

    ``sft.jsonl`` has prompt and completion of training rows (of all, or of the best of each prompt), ``prompts.jsonl`` the
    held-out prompts, each once, with ``reference``: the best-scored or chosen response.
    """
    own = job.settings
    kind, train = _load(job.stage.sources["rows"], own.get("train_split"), own)
    found: Row = {"kind": kind}
    if own.get("held_out_split") is not None:
        other, held_out = _load(job.stage.sources["rows"], own["held_out_split"], own)
        if other != kind:
            raise ValueError(f"The training rows are {kind}, the held-out rows {other}; give rows of one kind.")
        train, found["overlapping"] = _without_prompts_of(train, held_out)
    else:
        train, held_out = split_by_prompt(train, own["eval_fraction"], own["seed"])
    train = _first_prompts(train, own.get("train_prompts"))
    held_out = _first_prompts(held_out, own.get("held_out_prompts"))
    for name, rows in (("train", train), ("held_out", held_out)):
        if not rows:
            raise ValueError(f"No {name} rows are left; give more data, or another eval_fraction.")
        found[name] = write_lines(job.folder / f"{name}.jsonl", rows)
        found[f"{name}_prompts"] = len({prompt_key(row["prompt"]) for row in rows})
    found["sft_texts"] = write_lines(job.folder / "sft.jsonl", _sft_rows(train, own["sft_texts"]))
    write_lines(job.folder / "prompts.jsonl", _prompts(held_out))
    words = f"{found['train']:,} training rows of {found['train_prompts']:,} prompts, "
    return found | {"summary": f"{words}{found['held_out']:,} held-out of {found['held_out_prompts']:,}"}


def make_pairs(job: Job) -> Row:
    """Pairs of the data stage's rows: ``train.jsonl`` and ``held_out.jsonl`` in TRL's preference format."""
    own = job.settings
    found: Row = {}
    for part in ("train", "held_out"):
        rows = list(read_lines(job.inputs["data"] / f"{part}.jsonl"))
        if job.results["data"]["kind"] == "scored":
            settings = PairSettings(
                strategy=own["strategy"], margin=own["margin"], cap=own.get("cap"), seed=own["seed"]
            )
            rows, report = pairs_from_scored(rows, settings)
            found[f"{part}_report"] = report.to_dict()
        rows = rows[: own.get(f"{part}_pairs")]
        if not rows:
            raise ValueError(f"No {part} pairs could be made; lower pairs.margin={own['margin']}, or give more rows.")
        found[part] = write_lines(job.folder / f"{part}.jsonl", rows)
    return {**found, "summary": f"{found['train']:,} training and {found['held_out']:,} held-out pairs"}


def _load(sources: Sequence[str], split: str | None, own: Row) -> tuple[str, list[Row]]:
    """Usable rows with an explicit prompt, and of what kind they are; what cannot be used is counted by the checks of
    training and of pairing, which come after."""
    source: Any = sources[0] if len(sources) == 1 else list(sources)
    loaded = load_preference_data(source, split=split, kinds=KINDS, data_dir=own.get("data_dir"))
    kind = format_of(loaded, str(source)).kind
    rows = [dict(row) for row in loaded]
    if kind == "scored":
        return kind, [row for row in rows if _is_usable(row)]
    form = preference_format(loaded, str(source))
    resolved = (resolve_row(row, form) for row in rows)
    usable = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")} for row, problems in resolved if not problems
    ]
    if not usable:
        raise ValueError(f"{source}: no row can be used; `sparsepo data check` says why.")
    return "preference", usable


def _is_usable(row: Row) -> bool:
    """Whether a scored row has a prompt, a text and a finite reward."""
    text, reward = row.get(first_of(TEXT_NAMES, row) or ""), row.get(first_of(REWARD_NAMES, row) or "")
    is_text = isinstance(text, str) and bool(text.strip()) and isinstance(row.get("prompt"), (str, list))
    return is_text and isinstance(reward, (int, float)) and math.isfinite(reward)


def _first_prompts(rows: list[Row], limit: int | None) -> list[Row]:
    if limit is None:
        return rows
    kept = set(list(dict.fromkeys(prompt_key(row["prompt"]) for row in rows))[:limit])
    return [row for row in rows if prompt_key(row["prompt"]) in kept]


def _without_prompts_of(rows: list[Row], others: list[Row]) -> tuple[list[Row], int]:
    taken = {prompt_key(row["prompt"]) for row in others}
    kept = [row for row in rows if prompt_key(row["prompt"]) not in taken]
    return kept, len(rows) - len(kept)


def response_of(row: Row) -> tuple[Any, Any, float]:
    """Prompt, response and its worth of a row: a scored text with its reward, or a chosen one with 1."""
    if "chosen" in row:
        return row["prompt"], row["chosen"], 1.0
    prompt, text = row["prompt"], row[first_of(TEXT_NAMES, row) or "text"]
    prompt, text = joined(prompt, text) if isinstance(prompt, str) else (prompt, text)
    return prompt, text, float(row[first_of(REWARD_NAMES, row) or "reward"])


def _best(rows: list[Row]) -> list[tuple[Any, Any, float]]:
    """The best response of each prompt, the first of equals."""
    best: dict[str, tuple[Any, Any, float]] = {}
    for row in rows:
        found = response_of(row)
        key = prompt_key(found[0])
        if key not in best or found[2] > best[key][2]:
            best[key] = found
    return list(best.values())


def _sft_rows(rows: list[Row], which: str) -> list[Row]:
    if which == "none":
        return []
    chosen = _best(rows) if which == "chosen" and "chosen" not in rows[0] else map(response_of, rows)
    seen: Counter[str] = Counter()
    found = []
    for prompt, response, _ in chosen:
        key = f"{prompt_key(prompt)}\0{prompt_key(response)}"
        seen[key] += 1
        if seen[key] == 1 and (not isinstance(response, str) or response.strip()):
            found.append({"prompt": prompt, "completion": response})
    return found


def _prompts(rows: list[Row]) -> list[Row]:
    return [{"prompt": prompt, "reference": response} for prompt, response, _ in _best(rows)]
