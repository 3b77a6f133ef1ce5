"""What judging costs: estimates before, a ledger while, and a cap that holds before a request is sent, not after."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .database import Database

_SCHEMA = """
CREATE TABLE requests (id TEXT PRIMARY KEY, state TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
                       cost REAL NOT NULL)
"""
_VERSION = 1
_CHARACTERS_A_TOKEN = 4  # of English, about
_OVERHEAD = 64  # tokens that a server may put around the messages
LIMIT_NAMES = ("max_completion_tokens", "max_tokens")


class BudgetError(Exception):
    """The next request could exceed the cap: it was not sent."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a request and of its answer."""

    sent: int
    answered: int

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.sent + other.sent, self.answered + other.answered)


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in whatever currency; the cap is in the same."""

    sent: float = 0.0
    answered: float = 0.0

    def cost(self, tokens: Tokens) -> float:
        """Of so many tokens."""
        return (tokens.sent * self.sent + tokens.answered * self.answered) / 1e6


def estimate(body: Mapping[str, Any], answer_tokens: int) -> Tokens:
    """What a request will about take: a token for four characters, and what such an answer usually has."""
    limit = answer_limit(body)
    return Tokens(
        math.ceil(sum(len(text) for text in _texts(body)) / _CHARACTERS_A_TOKEN),
        answer_tokens if limit is None else min(answer_tokens, limit),
    )


def upper_bound(body: Mapping[str, Any]) -> Tokens:
    """What a request can take at most: a token for every byte (no tokenizer over bytes makes more), and the longest answer.

    Raises:
        ValueError: the request sets no longest answer.
    """
    limit = answer_limit(body)
    if limit is None:
        raise ValueError(f"A cap on the cost needs a longest answer: set one of {', '.join(LIMIT_NAMES)}.")
    return Tokens(bound_of_prompt(body), limit)


def bound_of_prompt(body: Mapping[str, Any]) -> int:
    """The most tokens that a request's messages can be."""
    return sum(len(text.encode("utf-8", "replace")) for text in _texts(body)) + _OVERHEAD


def answer_limit(body: Mapping[str, Any]) -> int | None:
    """The longest answer that a request allows, in tokens."""
    return next((int(body[name]) for name in LIMIT_NAMES if isinstance(body.get(name), int)), None)


def _texts(body: Mapping[str, Any]) -> list[str]:
    messages: Sequence[Mapping[str, str]] = body["messages"]
    return [own["content"] for own in messages]


class Ledger:
    """Every request that was sent and what it cost, on disk: the cap holds over all runs into a folder, and over processes.

    A request is entered at its upper bound before it is sent, and at its true cost when the answer says how many tokens it
    took. If the process is killed in between, the upper bound stays: the answer may have been paid for.

    Args:
        path: of the file; ``":memory:"``: of this process alone.
        prices: per million tokens.
        max_cost, max_requests: caps; None: none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        prices: Prices | None = None,
        max_cost: float | None = None,
        max_requests: int | None = None,
    ) -> None:
        self._database = Database(path, _SCHEMA, _VERSION)
        self.prices = prices or Prices()
        self.max_cost, self.max_requests = max_cost, max_requests

    def reserve(self, body: Mapping[str, Any]) -> str:
        """Enter a request that is about to be sent; returns its entry.

        Raises:
            BudgetError: it could exceed a cap.
        """
        bound = upper_bound(body) if self.max_cost is not None or answer_limit(body) else Tokens(0, 0)
        cost, entry = self.prices.cost(bound), uuid.uuid4().hex
        with self._database.transaction() as connection:
            count, spent = connection.execute("SELECT COUNT(*), COALESCE(SUM(cost), 0) FROM requests").fetchone()
            if self.max_requests is not None and count + 1 > self.max_requests:
                raise BudgetError(f"{count} requests are sent; another would exceed --max_requests {self.max_requests}")
            if self.max_cost is not None and spent + cost > self.max_cost:
                raise BudgetError(
                    f"{spent:.6g} are spent or set aside, the next request may cost up to {cost:.6g}: together more than "
                    f"--max_cost {self.max_cost:g}"
                )
            row = (entry, "sent", bound.sent, bound.answered, cost)
            connection.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)
        return entry

    def settle(self, entry: str, state: str, tokens: Tokens | None) -> None:
        """Say how a request ended.

        Args:
            entry: what :meth:`reserve` gave.
            state: ``answered``, or what went wrong.
            tokens: that it took; None: unknown, it stays at its upper bound.
        """
        with self._database.transaction() as connection:
            if tokens is None:
                connection.execute("UPDATE requests SET state = ? WHERE id = ?", (state, entry))
            else:
                row = (state, tokens.sent, tokens.answered, self.prices.cost(tokens), entry)
                change = "UPDATE requests SET state = ?, tokens_in = ?, tokens_out = ?, cost = ? WHERE id = ?"
                connection.execute(change, row)

    def summary(self) -> dict[str, Any]:
        """Requests by how they ended, tokens and cost, of all runs."""
        with self._database.transaction() as connection:
            states = dict(connection.execute("SELECT state, COUNT(*) FROM requests GROUP BY state ORDER BY state"))
            sums = "SELECT COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0), COALESCE(SUM(cost), 0)"
            count, sent, answered, cost = connection.execute(f"{sums} FROM requests").fetchone()
        return {"requests": count, "by_end": states, "tokens_in": sent, "tokens_out": answered, "cost": cost}

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def usage_of(answer: Mapping[str, Any]) -> Tokens | None:
    """Tokens as the server counted them; None where it does not say, or says nonsense."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    numbers = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if any(isinstance(own, bool) or not isinstance(own, int) or own < 0 for own in numbers):
        return None
    return Tokens(*numbers)  # type: ignore[arg-type]
