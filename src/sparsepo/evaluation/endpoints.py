"""What all requests to OpenAI-compatible servers share: where the key comes from, and what else may be sent."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

KEY_VARIABLES = ("SPARSEPO_API_KEY", "OPENAI_API_KEY")  # the first one that is set; its value is never written


def key_from_environment() -> tuple[str | None, str | None]:
    """The API key and the variable that it comes from. A variable that is set and empty means: no key."""
    for name in KEY_VARIABLES:
        if (value := os.environ.get(name)) is not None:
            return (value.strip(), name) if value.strip() else (None, None)
    return None, None


def headers_for(url: str) -> dict[str, Any]:
    """Headers beside the package's own: an organisation or project from the environment is for OpenAI's address only."""
    from openai import Omit

    if (urlsplit(url).hostname or "").endswith("openai.com"):
        return {}
    return {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
