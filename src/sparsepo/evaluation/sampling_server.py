"""Sampling from a server that speaks OpenAI's protocol, such as vLLM's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .endpoints import KEY_VARIABLES, headers_for, key_from_environment
from .generation import Prompt
from .sampling import Sample, Sampler, SamplingSettings

APIS = ("auto", "completions", "chat")
_ROUNDS = 16  # requests for one prompt where a server gives fewer completions than asked for


class ServerError(ValueError):
    """A server that cannot be reached, refuses, or answers something else than completions."""


class ServerSampler(Sampler):
    """Completions from an OpenAI-compatible server; several prompts at a time.

    The server is sent a seed with every request, drawn from the settings' seed and the prompt's number. Whether the same
    seed gives the same samples is the server's affair.

    Args:
        url: of the API, such as ``http://localhost:8000/v1``.
        model: the server's name of the model.
        settings: how it draws.
        api: ``completions`` continues texts; ``chat`` answers conversations (a text becomes one user message); ``auto``:
            ``chat`` for conversations, ``completions`` for texts.
        parallel: requests under way at a time.
        timeout: seconds of one request.
        retries: of a request that failed for reasons that may pass (429, 5xx, no connection), with growing pauses.

    Raises:
        ValueError: a setting out of range, or no URL.
        ImportError: the package ``openai`` is missing.
    """

    def __init__(
        self,
        url: str,
        model: str,
        settings: SamplingSettings,
        *,
        api: str = "auto",
        parallel: int = 8,
        timeout: float = 300.0,
        retries: int = 6,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"server={url!r} is no URL; write it like http://localhost:8000/v1.")
        if api not in APIS:
            raise ValueError(f"api={api!r} is unknown; choose one of {', '.join(APIS)}.")
        for name, value in (("parallel", parallel), ("timeout", timeout)):
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0.")
        if settings.max_prompt_length is not None:
            raise ValueError("max_prompt_length has no effect on a server, which has its own tokenizer.")
        self.url, self.model, self.settings, self.api = url, model, settings, api
        self.parallel, self.prompts_at_once = parallel, 8 * parallel
        self._key, _ = key_from_environment()
        self._client = _client(url, self._key, timeout, retries)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse conversations where texts are continued."""
        if self.api == "completions" and any(not isinstance(prompt, str) for prompt in prompts):
            raise ValueError("The prompts are conversations, which the completions API does not take; use chat.")

    def sample(self, numbers: Sequence[int], prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Sample]]]:
        """Requests in threads; after an error no further ones are sent."""
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = {
                pool.submit(self._of_prompt, number, prompt): place
                for place, (number, prompt) in enumerate(zip(numbers, prompts, strict=True))
            }
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _of_prompt(self, number: int, prompt: Prompt) -> list[Sample]:
        found: list[Sample] = []
        for attempt in range(_ROUNDS):  # some servers give one completion whatever n is
            seed = int(np.random.SeedSequence([self.settings.seed, number, attempt]).generate_state(1)[0] & 0x7FFFFFFF)
            found += self._request(prompt, self.settings.samples - len(found), seed)
            if len(found) >= self.settings.samples:
                return found[: self.settings.samples]
        raise ServerError(
            f"{self.url} gave {len(found)} completions of prompt {number} in {_ROUNDS} requests; {self.settings.samples} "
            "are wanted: lower the number of samples."
        )

    def _request(self, prompt: Prompt, count: int, seed: int) -> list[Sample]:
        import openai

        s = self.settings
        common = {
            "model": self.model,
            "n": count,
            "max_tokens": s.max_new_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "seed": seed,
        }
        is_chat = self.api == "chat" or (self.api == "auto" and not isinstance(prompt, str))
        try:
            if is_chat:
                messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                answer: Any = self._client.chat.completions.create(messages=messages, **common)
            else:
                answer = self._client.completions.create(prompt=prompt, **common)
        except openai.AuthenticationError as error:
            raise ServerError(
                f"{self.url} refuses the key: set {' or '.join(KEY_VARIABLES)}. ({self._said(error)})"
            ) from None
        except openai.OpenAIError as error:
            raise ServerError(f"{self.url}: {type(error).__name__}: {self._said(error)}") from None
        except ValueError as error:  # an answer that is no JSON
            raise ServerError(f"{self.url} answered no JSON: {error}") from error
        return [_sample(choice, is_chat, seed, self.url) for choice in self._choices(answer)]

    def _said(self, error: Exception) -> str:
        """An error's text, and the server's own; servers may repeat the key in it."""
        response = getattr(error, "response", None)
        said = str(error) if response is None else f"{error} {response.text}"
        return " ".join(said.split())[:400].replace(self._key or "\0", "…")

    def _choices(self, answer: Any) -> list[Any]:
        choices = getattr(answer, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise ServerError(f"{self.url} answered without completions: {str(answer)[:200]!r}")
        return choices


def _client(url: str, key: str | None, timeout: float, retries: int) -> Any:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ImportError("Sampling from a server needs the package openai: pip install 'sparsepo[judge]'") from error
    return OpenAI(
        base_url=url, api_key=key or "none", timeout=timeout, max_retries=retries, default_headers=headers_for(url)
    )


def _sample(choice: Any, is_chat: bool, seed: int, url: str) -> Sample:
    text = choice.message.content if is_chat and choice.message is not None else getattr(choice, "text", None)
    if is_chat and text is None:
        text = ""  # a refusal or a call of a tool
    if not isinstance(text, str):
        raise ServerError(f"{url} answered a completion without text: {str(choice)[:200]!r}")
    reason = choice.finish_reason
    return Sample(text, None if reason is None else reason == "stop", None, seed)
