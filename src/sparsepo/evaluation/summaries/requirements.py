"""Optional packages of single metrics."""

from __future__ import annotations

import importlib
from typing import Any


def optional(package: str, metric: str) -> Any:
    """Import a package that only some metrics need.

    Raises:
        ImportError: it is not installed; says which metric wanted it and how to get it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{metric} needs the package {package.replace('_', '-')} ({error}): pip install 'sparsepo[summaries]'"
        ) from error
