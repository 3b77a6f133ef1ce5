"""Writing results so that others may read at any time. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees all of it or none, whichever machine writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
