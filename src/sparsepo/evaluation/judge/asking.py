"""Many requests to a judge: several at once, each tried again where that can help, none paid for twice, within a cap."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from .budget import BudgetError, Ledger, Tokens, bound_of_prompt
from .cache import AnswerCache, request_key
from .client import Client, Endpoint, JudgeError, RefusedError, TryAgainError

_LONGEST_BACKOFF = 60.0
_PAID_RETRIES = 2  # of a request whose answer may have been made and billed before it was lost
_GIVEN_UP_IN_A_ROW = 5  # then the endpoint is taken to be down
_REFUSED_AT_FIRST = 3  # before any answer: then the settings are taken to be wrong
_POLL = 0.5  # seconds between looks at what another process asks
_LEASE = 30.0  # seconds beyond its time-out for which a request is claimed

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Manners:
    """How to ask.

    Args:
        parallel: requests at once.
        retries: tries after the first, of each request.
        backoff: seconds before the first retry; doubled for each further one, up to a minute, with jitter.
        max_wait: the longest that the server may ask to wait; beyond it judging stops.

    Raises:
        ValueError: a value is out of range.
    """

    parallel: int = 4
    retries: int = 6
    backoff: float = 1.0
    max_wait: float = 300.0

    def __post_init__(self) -> None:
        for name, least in (("parallel", 1), ("retries", 0), ("backoff", 0), ("max_wait", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least {least}.")


@dataclass
class Asked:
    """How asking went.

    Args:
        total: different requests.
        adopted: of those answered before, the ones whose answers did not say which endpoint they came from.
        cached: answered before, or by another process meanwhile.
        answered: paid for now.
        failed: request → why it has no answer, after all tries.
        retried: what went wrong → how often, where another try followed or could have.
        stopped: why requests were left unasked; "" where none was.
    """

    total: int = 0
    adopted: int = 0
    cached: int = 0
    answered: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    retried: Counter[str] = field(default_factory=Counter)
    stopped: str = ""


def ask_all(
    bodies: Mapping[str, Body],
    cache: AnswerCache,
    ledger: Ledger,
    endpoint: Endpoint,
    manners: Manners | None = None,
    progress: Callable[[Asked], None] = lambda asked: None,
) -> Asked:
    """Ask everything that the cache does not know; the answers are in the cache afterwards.

    Args:
        bodies: requests by their keys (:func:`~.cache.request_key`).
        cache, ledger: where answers and costs are kept.
        endpoint, manners: whom and how to ask.
        progress: called after every change.

    Raises:
        JudgeError: judging cannot go on; what is answered is kept.
    """
    return _run(_Asking(bodies, cache, ledger, endpoint, manners or Manners(), progress).run())


def _run(coroutine: Coroutine[Any, Any, Asked]) -> Asked:
    """Run to the end, also where a loop runs already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    found: list[Any] = []

    def own_loop() -> None:
        try:
            found.append(asyncio.run(coroutine))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=own_loop)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    result: Asked = found[0]
    return result


class _Asking:
    def __init__(
        self,
        bodies: Mapping[str, Body],
        cache: AnswerCache,
        ledger: Ledger,
        endpoint: Endpoint,
        manners: Manners,
        progress: Callable[[Asked], None],
    ) -> None:
        self.bodies, self.cache, self.ledger, self.endpoint, self.manners = bodies, cache, ledger, endpoint, manners
        self.progress = progress
        self.asked = Asked(total=len(bodies))
        self.error: JudgeError | None = None
        self.not_before = 0.0  # of the loop's clock: a server that asks one request to wait means all
        self.flying = 0
        self.given_up = 0  # since the last answer
        self.random = random.Random()

    async def run(self) -> Asked:
        older = {key: request_key(body) for key, body in self.bodies.items()}
        self.asked.adopted = len(self.cache.adopt(older))
        known = self.cache.known(self.bodies)
        self.asked.cached = len(known)
        self.progress(self.asked)
        self.queue = deque(key for key in self.bodies if key not in known)
        self.elsewhere: deque[str] = deque()
        if not self.queue:
            return self.asked
        self.stop = asyncio.Event()
        self.landed = asyncio.Condition()
        self.client = Client(self.endpoint)
        try:
            await asyncio.gather(*(self._work() for _ in range(min(self.manners.parallel, len(self.queue)))))
        finally:
            await self.client.close()
        if self.error is not None:
            raise self.error
        return self.asked

    async def _work(self) -> None:
        while not self.stop.is_set() and (self.queue or self.elsewhere):
            if self.queue:
                key = self.queue.popleft()
            else:  # only what another process asks is left: its answer, or its end, is waited for
                key = self.elsewhere.popleft()
                await self._pause(_POLL)
            state = self.cache.claim(key, self._lease())
            if state == "elsewhere":
                self.elsewhere.append(key)
            elif state == "answered":
                self.asked.cached += 1
                self.progress(self.asked)
            else:
                await self._answer(key)

    async def _answer(self, key: str) -> None:
        """Ask one claimed request until it is answered, given up or not allowed; the claim ends in any case."""
        try:
            for attempt in range(self.manners.retries + 1):
                if (wait := self.not_before - asyncio.get_running_loop().time()) > 0:
                    self.cache.claim(key, wait + self._lease())
                    await self._pause(wait)
                if self.stop.is_set():
                    return
                failure = await self._try(key)
                if failure is None or not await self._again(failure, key, attempt):
                    return
        except BudgetError as error:
            self.asked.stopped = self.asked.stopped or str(error)
            self.stop.set()
        except JudgeError as error:
            self.error = self.error or error
            self.stop.set()
        finally:
            self.cache.release(key)

    async def _try(self, key: str) -> TryAgainError | None:
        """Send a request once; what went wrong, where another try may help."""
        body = self.bodies[key]
        entry = await self._reserve(body)
        state, tokens = "interrupted", None  # type: tuple[str, Tokens | None]
        try:
            answer = await self.client.ask(body)
            self.cache.put(key, answer)  # first of all: it is paid for
            state = "answered"
            tokens = Tokens(*answer["usage"]) if answer["usage"] else _counted(body, answer)
            self.asked.answered += 1
            self.given_up = 0
        except TryAgainError as error:
            state, tokens = "failed", None if error.may_be_paid else Tokens(0, 0)
            return error
        except RefusedError as error:
            state, tokens = "refused", Tokens(0, 0)
            self.asked.failed[key] = str(error)
            if not self.asked.answered and not self.asked.cached and len(self.asked.failed) >= _REFUSED_AT_FIRST:
                raise JudgeError(f"The endpoint refuses the requests: {error}") from None
        except JudgeError:
            state, tokens = "refused", Tokens(0, 0)
            raise
        finally:
            self.ledger.settle(entry, state, tokens)
            async with self.landed:
                self.flying -= 1
                self.landed.notify_all()
            self.progress(self.asked)
        return None

    async def _reserve(self, body: Body) -> str:
        """Enter a request in the ledger, waiting for what those under way leave of the money set aside for them."""
        async with self.landed:
            while True:
                try:
                    entry = self.ledger.reserve(body)
                except BudgetError:
                    if not self.flying or self.stop.is_set():
                        raise
                    await self.landed.wait()
                else:
                    self.flying += 1
                    return entry

    async def _again(self, failure: TryAgainError, key: str, attempt: int) -> bool:
        """Wait before another try; False where there is none."""
        self.asked.retried[str(failure)[:120]] += 1
        if failure.wait is not None and failure.wait > self.manners.max_wait:
            raise JudgeError(
                f"{failure}: the endpoint asks to wait {failure.wait:.0f} s, longer than --max_wait "
                f"{self.manners.max_wait:g}; run again later, what is answered is kept."
            )
        most = min(self.manners.retries, _PAID_RETRIES) if failure.may_be_paid else self.manners.retries
        if attempt >= most:
            self.asked.failed[key] = str(failure)
            self.given_up += 1
            if self.given_up >= _GIVEN_UP_IN_A_ROW:
                raise JudgeError(
                    f"{self.given_up} requests in a row had no answer, the last after {attempt + 1} tries: {failure}. "
                    "What is answered is kept: run again when the endpoint works."
                )
            return False
        seconds = min(self.manners.backoff * 2**attempt, _LONGEST_BACKOFF) * self.random.uniform(0.5, 1.0)
        if failure.wait is not None:
            # at least what is asked for; a little more, or all would come back at the same moment
            seconds = failure.wait + self.random.uniform(0.0, max(0.1 * failure.wait, self.manners.backoff))
            self.not_before = max(self.not_before, asyncio.get_running_loop().time() + failure.wait)
        self.cache.claim(key, seconds + self._lease())
        await self._pause(seconds)
        return True

    def _lease(self) -> float:
        return self.endpoint.timeout + _LEASE

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until judging stops."""
        if seconds > 0 and not self.stop.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self.stop.wait()
            except TimeoutError:
                pass


def _counted(body: Body, answer: Mapping[str, Any]) -> Tokens:
    """The most that an answer took whose server does not count tokens."""
    return Tokens(bound_of_prompt(body), len((answer["content"] or "").encode()) + 1)
