"""The pages that ``sparsepo train`` leaves: masks while training, and the report."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

EXAMPLE_PAIRS = 20  # in the report


def keep_pairs(trainer: Any, count: int, words: Any = None) -> None:
    """Watch the masks of the first held-out pairs; of streams nothing is kept, since their rows come once.

    ``words`` masks what the page shows (:class:`sparsepo.data.content.ContentFilter`).
    """
    if count and trainer.masker is not None and _shown_set(trainer) is not None:
        from sparsepo.inspection.history import record_masks

        record_masks(trainer, count, words=words)


def example_pairs(trainer: Any) -> list[Any]:
    """Records of the first held-out pairs; scored on every process, since sharded models need all."""
    data = _shown_set(trainer)
    if data is None:
        return []
    from sparsepo.inspection.collect import collect_rows

    rows = [data[place] for place in range(min(EXAMPLE_PAIRS, len(data)))]
    try:
        return list(collect_rows(trainer, rows))
    except Exception as error:  # what was trained is saved; its report must not fail the run
        logger.warning("The report has no example pairs: %s: %s", type(error).__name__, error)
        return []


def write_report(trainer: Any, output_dir: str, summary: dict[str, Any], records: list[Any], words: Any = None) -> None:
    """Write OUT/report.html; ``words`` masks what it shows."""
    from sparsepo.inspection.run_report import write_report as write

    health = [] if trainer.mask_health is None else [str(finding) for finding in trainer.mask_health.findings]
    write(output_dir, summary, trainer.state.log_history, records, health=health, words=words)


def _shown_set(trainer: Any) -> Any:
    """The held-out set, or the training set; None for streams."""
    data = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    return data if hasattr(data, "select") and len(data) else None
