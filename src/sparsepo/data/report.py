"""What the check before training found and did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import DataError

Action = Literal["drop", "keep"]


@dataclass(frozen=True)
class Rule:
    """One thing that is looked for: what it is in words, what is done by default, and whether that can be changed."""

    what: str
    action: Action
    is_fixed: bool = False


RULES: dict[str, Rule] = {
    "missing": Rule("field missing", "drop", True),
    "not_text": Rule("field of the wrong type", "drop", True),
    "messages": Rule("malformed conversation", "drop", True),
    "transcript": Rule("transcripts that cannot be split", "drop", True),
    "empty_prompt": Rule("empty prompt", "drop"),
    "empty_completion": Rule("empty or blank completion", "drop"),
    "identical": Rule("chosen and rejected identical", "drop"),
    "duplicate": Rule("same pair again", "drop"),
    "contradiction": Rule("pair that another row has the other way round", "keep"),
    "weights": Rule("malformed weights", "drop", True),
    "prompt_fills": Rule("prompt fills max_length", "drop"),
    "prompt_cut": Rule("prompt cut to max_prompt_length", "keep"),
    "truncated": Rule("completion cut to max_length", "keep"),
    "lost": Rule("completion loses more than max_lost", "drop"),
    "identical_cut": Rule("chosen and rejected identical once tokenised", "drop"),
    "eval_pair": Rule("pair is in the eval data too", "drop"),
    "eval_prompt": Rule("prompt is in the eval data too", "keep"),
}


@dataclass(frozen=True)
class Problem:
    """A finding in one row: which rule, which field, and the particulars."""

    code: str
    field: str
    detail: str


@dataclass
class Finding:
    """All rows in which one rule found something."""

    code: str
    action: Action
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def what(self) -> str:
        return RULES[self.code].what


@dataclass
class TokenCounts:
    """Lengths in tokens of the rows that stay, where a tokenizer was given. Lost: response tokens beyond max_length."""

    rows: int = 0
    prompt_total: int = 0
    prompt_longest: int = 0
    response_total: int = 0
    response_longest: int = 0
    lost: int = 0

    def add(self, prompt: int, responses: tuple[int, int], lost: int) -> None:
        self.rows += 1
        self.prompt_total += prompt
        self.prompt_longest = max(self.prompt_longest, prompt)
        self.response_total += sum(responses)
        self.response_longest = max(self.response_longest, *responses)
        self.lost += lost

    def to_dict(self) -> dict[str, Any]:
        rows = max(self.rows, 1)
        return {
            "rows": self.rows,
            "prompt_mean": round(self.prompt_total / rows, 1),
            "prompt_longest": self.prompt_longest,
            "response_mean": round(self.response_total / rows / 2, 1),
            "response_longest": self.response_longest,
            "response_tokens_lost": self.lost,
            "share_lost": round(self.lost / max(self.response_total, 1), 4),
        }


@dataclass
class CheckReport:
    """Counts, examples and what was done. Rows are counted from 0, as in the data set.

    Args:
        name: what was checked.
        format: the row format in words.
        rows, kept: rows before and after.
        findings: by code of the rule; a row can have several.
        tokens: lengths; empty (rows = 0) without a tokenizer.
        notes: sentences on what was not checked.
    """

    name: str
    format: str
    rows: int = 0
    kept: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    tokens: TokenCounts = field(default_factory=TokenCounts)
    notes: list[str] = field(default_factory=list)
    max_examples: int = 3

    @property
    def dropped(self) -> int:
        return self.rows - self.kept

    def add(self, row: int, problem: Problem, action: Action) -> None:
        """Count a problem of a row and keep it as an example if there are few yet."""
        finding = self.findings.setdefault(problem.code, Finding(problem.code, action))
        finding.count += 1
        if len(finding.examples) < self.max_examples:
            finding.examples.append({"row": row, "field": problem.field, "detail": problem.detail})

    def ordered(self) -> list[Finding]:
        """Findings in the order of the rules."""
        return [self.findings[code] for code in RULES if code in self.findings]

    def first_dropped(self) -> tuple[Finding, dict[str, Any]] | None:
        """The earliest row that a rule dropped, among the examples."""
        dropped = [
            (finding, example) for finding in self.ordered() if finding.action == "drop" for example in finding.examples
        ]
        return min(dropped, key=lambda pair: pair[1]["row"], default=None)

    def summary(self) -> str:
        """One line: rows, kept, dropped."""
        return f"{self.name}: {self.format}; {self.rows:,} rows, {self.kept:,} kept, {self.dropped:,} dropped"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        found = [
            {"code": f.code, "what": f.what, "action": f.action, "rows": f.count, "examples": f.examples}
            for f in self.ordered()
        ]
        return {
            "name": self.name,
            "format": self.format,
            "rows": self.rows,
            "kept": self.kept,
            "dropped": self.dropped,
            "findings": found,
            "tokens": self.tokens.to_dict() if self.tokens.rows else None,
            "notes": list(self.notes),
        }

    def print(self, console: Any = None) -> None:
        """Print the table to a rich console (by default the terminal)."""
        from rich.console import Console

        console = console or Console()
        console.print(self.summary(), highlight=False, markup=False)
        if self.findings:
            console.print(self._table())
        if self.tokens.rows:
            t = self.tokens.to_dict()
            console.print(
                f"Tokens: prompt {t['prompt_mean']} on average, longest {t['prompt_longest']}; response "
                f"{t['response_mean']}, longest {t['response_longest']}; {t['share_lost']:.1%} of response tokens cut off",
                highlight=False,
            )
        for note in self.notes:
            console.print(f"Note: {note}", highlight=False, markup=False)

    def _table(self) -> Any:
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for column, justify in (("Found", "left"), ("Rows", "right"), ("Share", "right"), ("Done", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("First example (rows from 0)", overflow="fold")
        for finding in self.ordered():
            example = finding.examples[0]
            done = "dropped" if finding.action == "drop" else "kept"
            share = f"{finding.count / max(self.rows, 1):.1%}"
            where = escape(f"row {example['row']}, {example['field']}: {example['detail']}")
            table.add_row(finding.what, f"{finding.count:,}", share, done, where)
        return table


class CheckError(DataError):
    """The data do not pass; ``report`` holds all that was found."""

    def __init__(self, message: str, report: CheckReport) -> None:
        super().__init__(message)
        self.report = report
