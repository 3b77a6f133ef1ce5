"""How the masks of a few pairs change while a model trains: a callback, files that a killed run leaves whole, one page."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from sparsepo.data.content import ContentFilter

from .collect import collect_rows
from .document import figure_style
from .figures import MASK_NAMES
from .frames import write_frames
from .records import PairRecord
from .statistics import MASKS
from .storing import RecordWriter, read_records

logger = logging.getLogger(__name__)

FOLDER, PAGE = "mask_history", "masks.html"
SNAPSHOTS = 20  # of a run, about
_FILE = re.compile(r"step-(\d+)\.jsonl")


class MaskHistory(TrainerCallback):
    """Keeps a few pairs and scores them about twenty times while a trainer trains. Training does not notice: no random
    number is drawn and no weight is touched.

    Writes OUT/mask_history/step-N.jsonl (as ``sparsepo inspect --format jsonl``) and OUT/masks.html with a slider over the
    steps; histograms of the masks and a picture go to the trainer's TensorBoard, W&B or trackio. A resumed run goes on.

    Args:
        trainer: that is watched; add the callback with ``trainer.add_callback``, or call :func:`record_masks`.
        rows: pairs as the trainer has prepared them.
        every: steps between two snapshots; None: a twentieth of the run. The start and the end are always kept.
        words: masks offensive words on the page; the snapshots keep the texts.

    Raises:
        ValueError: no rows, or ``every`` below 1.
    """

    def __init__(
        self,
        trainer: Any,
        rows: Sequence[dict[str, Any]],
        every: int | None = None,
        words: ContentFilter | None = None,
    ) -> None:
        if not rows:
            raise ValueError("MaskHistory needs at least one pair to keep.")
        if every is not None and every < 1:
            raise ValueError(f"every={every!r} must be at least 1 step.")
        self.trainer, self.rows, self.every, self.words = trainer, list(rows), every, words
        self._last: int | None = None
        self._failed = False

    @property
    def folder(self) -> Path:
        """Where the snapshots lie."""
        return Path(self.trainer.args.output_dir) / FOLDER

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Snapshots of an earlier run, or behind the checkpoint that this one resumes from, are removed."""
        if state.is_world_process_zero:
            for step, path in snapshots(self.folder).items():
                if step > state.global_step or state.global_step == 0:
                    path.unlink()
        self._last = None
        if state.global_step == 0:
            self._keep(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A snapshot where one is due."""
        every = self.every or max(1, state.max_steps // SNAPSHOTS)
        if state.global_step % every == 0:
            self._keep(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last snapshot."""
        if self._last != state.global_step:
            self._keep(state)

    def _keep(self, state: Any) -> None:
        """A snapshot. These pages are a by-product: where they fail the run goes on without them, and says so."""
        if self._failed:
            return
        try:
            self._snapshot(state)
        except Exception as error:
            self._failed = True
            logger.warning(
                "Masks of step %d were not kept, nor will later ones be: %s: %s. The run goes on; inspect_pairs=0 (or "
                "removing the MaskHistory callback) switches this off.",
                state.global_step,
                type(error).__name__,
                error,
            )

    def _snapshot(self, state: Any) -> None:
        """Score the pairs. Every process scores them (sharded models need all), the first one writes."""
        trainer, step = self.trainer, state.global_step
        records = list(collect_rows(trainer, self.rows))
        self._last = step
        if not state.is_world_process_zero:
            return
        with RecordWriter(self.folder / f"step-{step:07d}.jsonl") as writer:
            for record in records:
                writer.add(record)
        write_history_page(trainer.args.output_dir, trainer.objective.display_name, self.words)
        _report(trainer.callback_handler.callbacks, records, step)


def record_masks(
    trainer: Any, pairs: int = 4, every: int | None = None, words: ContentFilter | None = None
) -> MaskHistory:
    """Add a :class:`MaskHistory` of the first held-out pairs (of the first training pairs where nothing is held out).

    Raises:
        ValueError: ``pairs`` is below 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs={pairs!r} must be at least 1.")
    data = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    if isinstance(data, Mapping):
        data = next(iter(data.values()))
    rows = [row for row, _ in zip(data, range(pairs), strict=False)]
    history = MaskHistory(trainer, rows, every, words)
    trainer.add_callback(history)
    return history


def snapshots(folder: Path) -> dict[int, Path]:
    """Step → file, in order."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.jsonl") if (match := _FILE.fullmatch(path.name))]
    return dict(sorted(found))


def read_history(output_dir: str | os.PathLike[str]) -> dict[int, list[PairRecord]]:
    """Step → the records of its pairs."""
    return {step: list(read_records(path)) for step, path in snapshots(Path(output_dir) / FOLDER).items()}


def write_history_page(
    output_dir: str | os.PathLike[str], subtitle: str = "", words: ContentFilter | None = None
) -> Path:
    """Write OUT/masks.html from the snapshots, offensive words masked where ``words`` says so; returns its path."""
    frames = {f"step {step}": own for step, own in read_history(output_dir).items()}
    return write_frames(
        Path(output_dir) / PAGE,
        frames,
        title="Masks while training",
        subtitle=subtitle,
        slider="step of training",
        words=words,
    )


def _report(callbacks: Sequence[Any], records: Sequence[PairRecord], step: int) -> None:
    """Histograms and a picture for the loggers that the trainer has."""
    from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

    values = {name: own for mask in MASKS if (own := _values(records, mask)) is not None for name in [MASK_NAMES[mask]]}
    if not values:
        return
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for name, own in values.items():
                callback.tb_writer.add_histogram(f"masks/{name}", own, step)
            callback.tb_writer.add_image("masks/pairs", picture(records), step, dataformats="HWC")
        elif isinstance(callback, WandbCallback) and callback._initialized:
            wandb = callback._wandb
            logged: dict[str, Any] = {f"masks/{name}": wandb.Histogram(own) for name, own in values.items()}
            wandb.log({**logged, "masks/pairs": wandb.Image(picture(records)), "train/global_step": step})
        elif isinstance(callback, TrackioCallback) and callback._initialized:
            trackio = callback._trackio
            logged = {f"masks/{name}": trackio.Histogram(own) for name, own in values.items()}
            trackio.log({**logged, "masks/pairs": trackio.Image(picture(records)), "train/global_step": step})


def _values(records: Sequence[PairRecord], mask: str) -> NDArray[np.float32] | None:
    found = [own for record in records for side in record.sides().values() if (own := side.values(mask)) is not None]
    flat = np.concatenate(found) if found else np.zeros(0, np.float32)
    return flat if len(flat) else None


def picture(records: Sequence[PairRecord]) -> NDArray[np.uint8]:
    """The masks of the pairs as rows of colours, (height, width, 3); exact zeros are grey."""
    rows = [
        (f"{record.number} {name}", own)
        for record in records
        for name, side in record.sides().items()
        if (own := side.reward_mask) is not None and len(own)
    ]
    width = max((len(own) for _, own in rows), default=1)
    grid = np.full((max(len(rows), 1), width), np.nan)
    for place, (_, own) in enumerate(rows):
        grid[place, : len(own)] = own
    with figure_style() as pyplot:
        figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.24 * len(grid)))
        shown = np.ma.masked_where(~(grid > 0), grid)
        zeros = np.ma.masked_where(grid != 0, np.ones_like(grid))
        axes.imshow(zeros, aspect="auto", cmap="Greys", vmin=0, vmax=3, interpolation="nearest")
        image = axes.imshow(shown, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
        axes.set_xlabel("token of the response")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label=MASK_NAMES["reward_mask"])
        figure.canvas.draw()
        pixels: NDArray[np.uint8] = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    return pixels
