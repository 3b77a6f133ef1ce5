"""Where the mask health monitor is tied into the trainer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from sparsepo.masks import Masker
from sparsepo.masks.health import MaskHealth
from sparsepo.objectives import Objective, PairScores
from sparsepo.scoring.dense import row_identity, token_positions

from .health_profile import health_profile
from .monitor import MaskMonitor


class MaskWatch:
    """The parts of a Trainer that feed its health monitor. Mixed into the trainer before the others."""

    # set by the trainer, or Trainer's own
    args: Any
    state: Any
    accelerator: Any
    callback_handler: Any
    is_in_train: bool
    masker: Masker | None
    objective: Objective
    _monitor: MaskMonitor | None = None

    def _set_up_monitor(self) -> None:
        if self.masker is None:
            return
        rate = self._mask_rates()[0] if self.masker.is_trainable else 0.0  # type: ignore[attr-defined]
        profile = health_profile(self.args, self.objective.beta, self.masker, rate)
        if profile is not None:
            on_failure = self.args.mask_on_failure or "warn"
            self._monitor = MaskMonitor(profile, self.masker, self.accelerator, self.args.output_dir, on_failure)
            self.add_callback(self._monitor)  # type: ignore[attr-defined]

    @property
    def mask_monitor(self) -> MaskMonitor | None:
        """The monitor of the masks' health; None without one, or once its callback is removed."""
        return self._monitor if self._monitor in self.callback_handler.callbacks else None

    @property
    def mask_health(self) -> MaskHealth | None:
        """What the monitor has found: ``findings`` (now), ``history`` (what appeared and cleared), ``limits``."""
        return None if self.mask_monitor is None else self.mask_monitor.health

    def _watch(self, mode: str, inputs: dict[str, Any], scores: PairScores, weight: Tensor) -> None:
        """Look at the masks of a batch."""
        monitor = self.mask_monitor
        if monitor is None or not self.is_in_train:
            return
        if mode == "train":
            position = token_positions(inputs["attention_mask"])[:, 1:]
            monitor.collect(scores, weight, position, self.state.global_step)
        else:
            monitor.collect_held_out(scores, weight, row_identity(inputs))

    def _read_monitor(self) -> dict[str, float]:
        """What the monitor adds to a log. A collective call."""
        if self.mask_monitor is None:
            return {}
        return self.mask_monitor.read(self.state.global_step, self.state.max_steps)

    def _begin_watched_evaluation(self, dataloader: Any) -> None:
        if self.mask_monitor is not None and self.is_in_train:
            rows = getattr(dataloader, "dataset", None)
            known = rows is not None and not isinstance(rows, IterableDataset)
            self.mask_monitor.held_out.begin(len(rows) if known else None)  # type: ignore[arg-type]

    def _end_watched_evaluation(self, prefix: str, values: dict[str, float]) -> dict[str, float]:
        """What the monitor adds to an evaluation's averages. A collective call."""
        if self.mask_monitor is None or not self.is_in_train:
            return {}
        training = next((entry for entry in reversed(self.state.log_history) if "rewards/margins" in entry), None)
        return self.mask_monitor.end_evaluation(prefix, values, training, self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if self.mask_monitor is not None:
            self.mask_monitor.restore(resume_from_checkpoint)
