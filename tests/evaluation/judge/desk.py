"""A cache, a ledger and one way to ask, for tests."""

from __future__ import annotations

from typing import Any

from sparsepo.evaluation.judge import AnswerCache, Asked, Endpoint, Ledger, Manners, Prices, ask_all, request_key
from tests.evaluation.judge.server import JudgeServer

QUICK = Manners(parallel=1, retries=3, backoff=0.01)
KEY = "sk-very-secret-0123456789"


def body_of(text: str = "which?", **settings: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **settings}


class Desk:
    """A cache and a ledger in memory, and one way to ask."""

    def __init__(self, server: JudgeServer, cache: Any = ":memory:", ledger: Any = ":memory:", **caps: Any) -> None:
        self.endpoint = Endpoint(server.url, timeout=caps.pop("timeout", 5.0), key=caps.pop("key", KEY))
        self.cache, self.ledger = AnswerCache(cache), Ledger(ledger, Prices(1.0, 10.0), **caps)

    def ask(self, *texts: str, manners: Manners = QUICK, **settings: Any) -> Asked:
        bodies = {request_key(body): body for body in (body_of(text, **settings) for text in texts)}
        return ask_all(bodies, self.cache, self.ledger, self.endpoint, manners)

    def content(self, text: str = "which?") -> Any:
        answer = self.cache.get(request_key(body_of(text)))
        return None if answer is None else answer["content"]
