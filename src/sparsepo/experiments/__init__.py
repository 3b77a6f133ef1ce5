"""Studies: many small runs, seeded and resumable, whose results say which settings to prefer."""

from __future__ import annotations

from .store import Store
from .tasks import MaterialSettings, Task

__all__ = ["MaterialSettings", "Store", "Task"]
