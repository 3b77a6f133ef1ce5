"""Secrets out of what is written: access tokens of the environment, of flags and of addresses. Imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "..."
# of flags, settings and environment variables
_SECRET_NAME = re.compile(r"(^|_)(token|api_?key|access_?key|secret|secret_?key|password|passwd|credentials?)$", re.I)
_SHORTEST = 8  # a shorter value would be found in ordinary words
_SHAPES = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"),  # user:password@host
    re.compile(r"(?<=[?&])((?:access_|auth_|api_)?(?:token|key)|signature|sig|password)=[^&\s'\"]+", re.I),
)


def is_secret_name(name: str) -> bool:
    """Whether a flag, setting or variable of this name holds a secret."""
    return bool(_SECRET_NAME.search(name.lstrip("-").replace("-", "_")))


def redacted(text: str) -> str:
    """A text without the secrets that the environment holds, and without what looks like an access token."""
    values = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(lambda match: f"{match[1]}={HIDDEN}" if match.re.groups and match[1] else HIDDEN, text)
    return text


def redacted_content(content: Any) -> Any:
    """JSON content with every text redacted, and values of secret names hidden."""
    if isinstance(content, str):
        return redacted(content)
    if isinstance(content, Mapping):
        return {
            name: HIDDEN if value and isinstance(value, str) and is_secret_name(str(name)) else redacted_content(value)
            for name, value in content.items()
        }
    if isinstance(content, (list, tuple)):
        return [redacted_content(value) for value in content]
    return content
