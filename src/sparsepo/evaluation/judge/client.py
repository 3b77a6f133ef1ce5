"""One request to an OpenAI-compatible endpoint: what came back, or what went wrong and whether to try again.

The ``openai`` package carries the request; its own retries are off, so that every request sent is counted here. The answer
is read as JSON here, since servers that speak the protocol differ in what they leave out.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sparsepo.evaluation.endpoints import headers_for

from .budget import usage_of

LARGEST = 4 * 2**20  # bytes of an answer
_SECRET = 8  # shorter keys are placeholders of local servers, and may be words of a text
_FATAL = {
    401: "the endpoint does not accept the key: set SPARSEPO_API_KEY (or OPENAI_API_KEY) to a valid one",
    402: "the account has no money left",
    403: "the key may not use this model or endpoint",
    404: "no such model or address: check --judge_model, and that --endpoint ends before /chat/completions, mostly in /v1",
    405: "the address takes no such request: --endpoint should end before /chat/completions, mostly in /v1",
}
_AGAIN = (408, 409, 425, 429)
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")


class JudgeError(Exception):
    """Judging cannot go on; the message says what to change."""


class RefusedError(Exception):
    """The server refuses this request, and would again (400, 413, 422)."""


@dataclass
class TryAgainError(Exception):
    """A request failed in a way that another try may mend.

    Args:
        what: went wrong.
        wait: seconds that the server asks for; None: it does not say.
        may_be_paid: whether the server may have made (and billed) an answer.
    """

    what: str
    wait: float | None = None
    may_be_paid: bool = False

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Args:
        url: of an OpenAI-compatible API, such as ``http://localhost:8000/v1``.
        timeout: seconds for a whole answer, however slowly it comes.
        key: the API key; it is sent in the header and goes nowhere else.
        name: what its answers are kept under; None: the address. One name for a server that moves, other names for
            servers that share an address (a local one on each of several machines).

    Raises:
        ValueError: the address is none, or holds a password or query; the key cannot be sent; the time-out is not above
            zero.
    """

    url: str
    timeout: float = 120.0
    key: str | None = field(default=None, repr=False)
    name: str | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_address = False
        if not is_address:
            raise ValueError(
                "endpoint: give the address of an OpenAI-compatible API, such as http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "endpoint: the address may hold no name, password or query; the key goes into SPARSEPO_API_KEY."
            )
        if parts.path.rstrip("/").endswith("/chat/completions"):
            raise ValueError("endpoint: leave /chat/completions off; it is added.")
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout:g} must be above zero.")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise ValueError(
                "The API key holds a space, a line break or a letter outside ASCII: it was not copied whole."
            )

    @property
    def source(self) -> str:
        """Whose answers these are, for the cache."""
        return self.name or source_of(self.url)

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's own."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    @property
    def sends_key_in_the_clear(self) -> bool:
        """Whether the key would go through a network unencrypted."""
        return self.key is not None and self.url.startswith("http://") and not self.is_local

    def clean(self, text: str) -> str:
        """A text from the server without the key, which a server may echo."""
        return text.replace(self.key, "[key]") if self.key is not None and len(self.key) >= _SECRET else text


def source_of(url: str) -> str:
    """An address as it is told apart from others: its host in small letters, no slash at its end."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


class Client:
    """Sends requests; to be used within one event loop.

    Args:
        endpoint: where to.
        parallel: connections at once.
    """

    def __init__(self, endpoint: Endpoint, parallel: int = 1) -> None:
        import openai

        self._openai = openai
        self._endpoint = endpoint
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key or "none",  # the package insists on one; local servers take any
            max_retries=0,
            timeout=endpoint.timeout,
            default_headers=headers_for(endpoint.url),
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request, once.

        Args:
            body: ``model``, ``messages`` and settings.

        Returns:
            ``content``, ``refusal``, ``finish_reason``, ``model`` and ``usage`` (tokens sent and answered) of the answer,
            None where the server does not give it.

        Raises:
            TryAgainError: another try may help.
            RefusedError: this request is refused for good.
            JudgeError: no request will succeed.
        """
        openai = self._openai
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                text = await self._send(body)
        except (TimeoutError, openai.APITimeoutError):
            raise TryAgainError(f"no whole answer within {self._endpoint.timeout:g} s", may_be_paid=True) from None
        except openai.APIStatusError as error:
            raise self._status(error.status_code, error.response.headers, error.body) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            # whether the server had begun to answer is unknown, but for connections that never were
            may_be_paid = type(cause).__name__ != "ConnectError"
            what = self._endpoint.clean(str(cause)) or "it was closed"
            raise TryAgainError(f"connection failed ({what})", may_be_paid=may_be_paid) from None
        except openai.OpenAIError as error:
            raise TryAgainError(self._endpoint.clean(f"{type(error).__name__}: {error}"), may_be_paid=True) from None
        return self._read(text)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _send(self, body: Mapping[str, Any]) -> str:
        settings = {name: value for name, value in body.items() if name not in ("model", "messages")}
        received = bytearray()
        completions = self._client.chat.completions.with_streaming_response
        try:
            async with completions.create(
                model=body["model"], messages=body["messages"], extra_body=settings
            ) as response:
                async for part in response.iter_bytes():
                    received += part
                    if len(received) > LARGEST:
                        raise TryAgainError(f"answer longer than {LARGEST // 2**20} MiB", may_be_paid=True)
        except Exception as error:
            # the transport's own errors; the package they come from changes with the version of openai
            if not type(error).__module__.startswith(("httpx", "httpcore", "h11", "anyio")):
                raise
            raise TryAgainError(f"answer broke off ({type(error).__name__})", may_be_paid=True) from None
        return bytes(received).decode("utf-8", "replace")

    def _status(self, status: int, headers: Mapping[str, str], body: Any) -> Exception:
        said = self._endpoint.clean(_message(body))
        what = f"HTTP {status}{f': {said}' if said else ''}"
        code = body.get("code") if isinstance(body, dict) else None
        if status == 429 and code in _NO_MONEY:
            return JudgeError(f"{what} (the account has no money left)")
        if status in _FATAL:
            return JudgeError(f"{what} ({_FATAL[status]})")
        if status in _AGAIN or status >= 500:
            return TryAgainError(what, wait=_wait(headers))
        if 300 <= status < 400:
            return JudgeError(f"{what} (the endpoint sends elsewhere: give the address itself)")
        return RefusedError(what)

    def _read(self, text: str) -> dict[str, Any]:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            begins = self._endpoint.clean(" ".join(text.split())[:60])
            raise TryAgainError(f"answer is no JSON (begins {begins!r})", may_be_paid=True) from None
        choices = content.get("choices") if isinstance(content, dict) else None
        first = choices[0] if isinstance(choices, list) and choices else None
        message = first.get("message") if isinstance(first, dict) else None
        if not isinstance(first, dict) or not isinstance(message, dict) or "content" not in message:
            error = content.get("error") if isinstance(content, dict) else None
            said = f" ({self._endpoint.clean(_message(error))})" if error else ""
            raise TryAgainError(f"answer holds no choices[0].message.content{said}", may_be_paid=True)
        found = {name: message.get(name) for name in ("content", "refusal")}
        found |= {"finish_reason": first.get("finish_reason"), "model": content.get("model")}
        for name, value in found.items():
            if value is not None and not isinstance(value, str):
                raise TryAgainError(f"answer's {name} is {type(value).__name__}, not a text", may_be_paid=True)
        cleaned = {
            # JSON may hold halves of surrogate pairs, which cannot be written
            name: None if value is None else self._endpoint.clean(value.encode("utf-8", "replace").decode("utf-8"))
            for name, value in found.items()
        }
        usage = usage_of(content)
        return {**cleaned, "usage": None if usage is None else [usage.sent, usage.answered]}


def _message(body: Any) -> str:
    """What a server says of an error, in one line."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", "") if isinstance(inner, dict) else inner
    text = " ".join(str(body or "").split())
    return text if len(text) <= 300 else text[:300] + "…"


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After as seconds or as a date, or OpenAI's retry-after-ms."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
