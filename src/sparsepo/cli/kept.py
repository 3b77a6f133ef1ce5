"""Results in a folder: what is there is not computed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .base import CliError


class Kept:
    """JSON files by key, written whole or not at all.

    Args:
        folder: made when the first result is kept; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def is_missing(self, key: str) -> bool:
        """Whether it is still to be made."""
        return self.folder is None or not (self.folder / f"{key}.json").is_file()

    def __call__(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept under a key; made, and kept, if it is not there.

        Raises:
            CliError: the file under the key is damaged.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{key}.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise CliError(f"{path} is damaged ({error}); delete it to compute it again.") from error
            return content
        from sparsepo.inspection.document import write_whole

        # as it is read later, so that a first and a second run agree
        text = json.dumps(make(), ensure_ascii=True, allow_nan=False)
        write_whole(path, text + "\n")
        return json.loads(text)


def model_state(name: str) -> list[Any]:
    """What tells a model from another of the same name: of a folder, its files' sizes and times; of a hub id, the id."""
    from sparsepo.evaluation.frontier_points import fingerprint

    return fingerprint(name, ("*.safetensors", "*.bin", "*.json"))


def model_digest(name: str) -> str:
    """:func:`model_state` as a short text, to be kept beside what the model wrote."""
    return blake2b(json.dumps(model_state(name)).encode(), digest_size=8).hexdigest()
