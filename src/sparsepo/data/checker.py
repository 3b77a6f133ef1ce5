"""All rules applied to rows, with the memory that repetition needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from .check_settings import CheckSettings
from .errors import DataError
from .formats import PREFERENCE_KINDS, RowFormat, detect_format
from .lengths import TokenizedRow, tokenize_rows
from .report import CheckReport, Problem
from .rules import SIDES, Row, pair_key, prompt_digest, resolve_row


class Checker:
    """Applies all rules to rows and remembers what repetition needs."""

    def __init__(
        self,
        form: RowFormat,
        report: CheckReport,
        settings: CheckSettings,
        tokenizer: Any,
        max_length: int | None,
        max_prompt_length: int | None,
    ) -> None:
        self.form, self.report, self.settings = form, report, settings
        self.tokenizer, self.max_length, self.max_prompt_length = tokenizer, max_length, max_prompt_length
        self.seen: dict[bytes, int] = {}
        self.eval_pairs: set[bytes] = set()
        self.eval_prompts: set[bytes] = set()
        self._last_counted = -1

    def remember_eval(self, dataset: Any) -> None:
        """Digests of the eval rows; a streamed eval set is not read for it."""
        form = preference_format(dataset, "eval data")
        for row in dataset:
            resolved, problems = resolve_row(row, form, self.settings.hh_conversational)
            if not problems:
                self.eval_pairs.add(pair_key(resolved))
                self.eval_prompts.add(prompt_digest(resolved))

    def keep(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> list[bool]:
        """Which rows stay; what was found goes into the report."""
        resolved, found = [], []
        for row, number in zip(rows, numbers, strict=True):
            one, problems = resolve_row(row, self.form, self.settings.hh_conversational)
            if self._stays(problems):
                problems.extend(self._repetition(one, number))
            resolved.append(one)
            found.append(problems)
        if self.tokenizer is not None:
            readable = [i for i, problems in enumerate(found) if self._stays(problems)]
            for i, tokens in zip(readable, self._tokens([resolved[i] for i in readable]), strict=True):
                if isinstance(tokens, Problem):
                    found[i].append(tokens)
                    continue
                found[i].extend(self._length_problems(resolved[i], tokens))
                if numbers[i] > self._last_counted and self._stays(found[i]):
                    self._measure(tokens)
        return [self._count(problems, number) for problems, number in zip(found, numbers, strict=True)]

    def _tokens(self, rows: list[Row]) -> list[TokenizedRow | Problem]:
        return tokenize_rows(rows, self.tokenizer) if rows else []

    def _stays(self, problems: Sequence[Problem]) -> bool:
        return all(self.settings.action(problem.code) == "keep" for problem in problems)

    def _count(self, problems: list[Problem], number: int) -> bool:
        stays = self._stays(problems)
        if number <= self._last_counted:  # a stream read again
            return stays
        self._last_counted = number
        self.report.rows += 1
        self.report.kept += stays
        for problem in {problem.code: problem for problem in reversed(problems)}.values():
            self.report.add(number, problem, self.settings.action(problem.code))
        return stays

    def _repetition(self, row: Row, number: int) -> Iterator[Problem]:
        key = pair_key(row)
        first = self.seen.setdefault(key, number)
        if first != number:
            yield Problem("duplicate", "prompt, chosen, rejected", f"the same as row {first}")
        other = self.seen.get(pair_key(row, swapped=True), number)
        if other != number:
            yield Problem("contradiction", "chosen, rejected", f"row {other} prefers the other one")
        if key in self.eval_pairs:
            yield Problem("eval_pair", "prompt, chosen, rejected", "in the eval data")
        elif self.eval_prompts and prompt_digest(row) in self.eval_prompts:
            yield Problem("eval_prompt", "prompt", "in the eval data")

    def _room(self, tokens: TokenizedRow) -> tuple[int, int | None]:
        """Tokens of the prompt that stay, and the room that max_length leaves a response (None: no limit)."""
        prompt = len(tokens.prompt)
        if self.max_prompt_length is not None:
            prompt = min(prompt, self.max_prompt_length)
        if self.max_length is None:
            return prompt, None
        is_after = self.settings.truncation_mode == "keep_start"
        return prompt, max(self.max_length - prompt, 0) if is_after else self.max_length

    def _measure(self, tokens: TokenizedRow) -> None:
        """Lengths of a row that stays."""
        prompt, room = self._room(tokens)
        lengths = (len(tokens.chosen), len(tokens.rejected))
        lost = 0 if room is None else sum(max(length - room, 0) for length in lengths)
        self.report.tokens.add(prompt, lengths, lost)

    def _length_problems(self, row: Row, tokens: TokenizedRow) -> Iterator[Problem]:
        yield from _weight_counts(row, tokens, self.tokenizer)
        prompt, room = self._room(tokens)
        if prompt < len(tokens.prompt):
            yield Problem("prompt_cut", "prompt", f"{len(tokens.prompt)} tokens, the last {prompt} stay")
        lengths = (len(tokens.chosen), len(tokens.rejected))
        kept = lengths if room is None else (min(lengths[0], room), min(lengths[1], room))
        if room == 0:
            yield Problem(
                "prompt_fills", "prompt", f"{prompt} tokens, max_length is {self.max_length}: no room for a response"
            )
            return
        for side, length, stays in zip(SIDES, lengths, kept, strict=True):
            if stays == length:
                continue
            lost = (length - stays) / length
            detail = f"{length - stays} of {length} tokens lost ({lost:.0%})"
            yield Problem("truncated", side, detail)
            if self.settings.max_lost is not None and lost > self.settings.max_lost:
                yield Problem("lost", side, detail)
        is_end = self.settings.truncation_mode == "keep_end" and room is not None
        cut = [ids[-room:] if is_end else ids[:room] for ids in (tokens.chosen, tokens.rejected)]  # type: ignore[operator]
        if cut[0] == cut[1]:
            is_cut = kept != lengths
            detail = f"they differ only beyond the {len(cut[0])} tokens that stay" if is_cut else "the same tokens"
            yield Problem("identical_cut", "chosen, rejected", detail)


def _weight_counts(row: Row, tokens: TokenizedRow, tokenizer: Any) -> Iterator[Problem]:
    """Weights given as one number a token: the end-of-sequence token may be left out."""
    for side, ids in zip(SIDES, (tokens.chosen, tokens.rejected), strict=True):
        weights = row.get(f"{side}_weights")
        if not weights or isinstance(weights[0], (list, tuple)):
            continue
        without_end = len(ids) - 1 if ids and ids[-1] == tokenizer.eos_token_id else len(ids)
        if len(weights) not in (len(ids), without_end):
            detail = f"{len(weights)} weights for a response of {without_end} tokens"
            yield Problem("weights", f"{side}_weights", detail)


def preference_format(dataset: Any, name: str) -> RowFormat:
    """Format of rows that can be trained on.

    Raises:
        DataError: the rows are of no preference format.
    """
    form = detect_format(list(islice(iter(dataset), 100)), name)
    if form.kind not in PREFERENCE_KINDS:
        raise DataError(
            f"{name}: {form.describe()} cannot be trained on as they stand; `sparsepo data pairs` makes pairs."
        )
    return form
