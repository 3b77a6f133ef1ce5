"""The mask health monitor: a callback, on by default, that says when masks fail and on request stops the run.

It adds up on the device what :mod:`sparsepo.masks.health` judges, reads the sums where Trainer logs, and compares the
masks of the same held-out pairs between evaluations. Remove it with ``trainer.remove_callback(MaskMonitor)``.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from sparsepo.masks import Masker
from sparsepo.masks.health import MaskHealth
from sparsepo.masks.health_types import HealthProfile, Reading
from sparsepo.masks.moments import SIZE, MaskSums
from sparsepo.masks.stability import fingerprint
from sparsepo.objectives import PairScores

from .health_profile import head_of, held_steps
from .held_out import HeldOutMasks, overfit_gap
from .mask_collector import MaskCollector, masks_of

logger = logging.getLogger(__name__)

HEALTH_FILE = "mask_health.json"
ON_FAILURE = ("warn", "stop")


class MaskMonitor(TrainerCallback):
    """Watches the masks of a run; see docs/health.md for what it looks for.

    Args:
        profile: what the run asks of its masks.
        masker: the run's masker.
        accelerator: of the trainer.
        output_dir: folder that gets ``mask_health.json``.
        on_failure: ``warn``: log; ``stop``: also save a checkpoint and end training.
    """

    def __init__(
        self, profile: HealthProfile, masker: Masker, accelerator: Any, output_dir: str, on_failure: str = "warn"
    ) -> None:
        self.health = MaskHealth(profile)
        self.masker, self.accelerator, self.on_failure = masker, accelerator, on_failure
        self.path = Path(output_dir) / HEALTH_FILE
        self.held_out = HeldOutMasks(tuple(profile.masks))
        self.stopped: dict[str, Any] | None = None  # step and reason
        self._collector = MaskCollector(tuple(profile.masks), profile.limit)
        self._restored = False
        self._has_acted = False  # on stopped
        self._heads: dict[str, list[torch.nn.Parameter]] | None = None
        self._forget_sums()

    def _forget_sums(self) -> None:
        self._collector.reset()
        self._gradient: dict[str, Tensor] = {}
        self._held = False

    # ---- collecting ----

    def collect(self, scores: PairScores, weight: Tensor, sequence_position: Tensor, step: int) -> None:
        """Add a training batch of P pairs.

        Args:
            scores: with masks.
            weight: weight of each pair, (P,).
            sequence_position: index of each target token in its unpadded sequence, (2P, T).
            step: optimiser steps made before this one.
        """
        self._collector.add(scores, weight, sequence_position, is_first=step == 0)

    def collect_held_out(self, scores: PairScores, weight: Tensor, identity: Tensor) -> None:
        """Keep what belongs to the sample from an evaluation batch of P pairs; ``identity`` of each sequence, (2P,)."""
        sides = (scores.chosen, scores.rejected)
        response = torch.cat([side.response_mask for side in sides])
        self.held_out.collect(identity, weight, response, masks_of(sides, self.masks))

    def collected(self) -> MaskCollector:
        """A copy of what was added since the last log; handed to :meth:`collect_from` if the next step is left out."""
        return self._collector.copy()

    def collect_from(self, collected: MaskCollector) -> None:
        """Forget what was added since :meth:`collected`, unless masks were what was not finite: that is to be told.

        A collective call: masks that one process saw are told by all, which keep what they added or forget it alike.
        """
        if not self._anywhere(self._collector.broken() > collected.broken()):
            self._collector = collected

    @property
    def masks(self) -> tuple[str, ...]:
        """The monitored masks."""
        return tuple(self.health.profile.masks)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the largest gradient of each head, and whether it may move."""
        if "no_gradient" not in self.health.profile.signatures:
            return
        if self._heads is None:
            self._heads = self._trained_heads()
        own = {id(p) for parameters in self._heads.values() for p in parameters}
        rates = [
            group["lr"] for group in kwargs["optimizer"].param_groups if not own.isdisjoint(map(id, group["params"]))
        ]
        self._held |= not any(rates) or state.global_step < held_steps(args, state.max_steps)
        for mask, parameters in self._heads.items():
            gradients = [
                p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in parameters if p.grad is not None
            ]
            if gradients:
                # one pass; the 2-norm is zero where all are
                size = torch.nn.utils.get_total_norm(gradients)
                # where fp16's scaler leaves the step out, nothing was seen
                size = torch.where(torch.isfinite(size), size, -1)
                self._gradient[mask] = torch.maximum(self._gradient[mask], size) if mask in self._gradient else size

    def _trained_heads(self) -> dict[str, list[torch.nn.Parameter]]:
        """Parameters of the masker that are trained, by mask."""
        heads: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in self.masker.named_parameters():
            if parameter.requires_grad:
                heads.setdefault(head_of(name, dict(self.health.profile.masks)), []).append(parameter)
        return heads

    # ---- reading, where Trainer logs: collective ----

    def read(self, step: int, max_steps: int) -> dict[str, float]:
        """Judge what was added since the last log. A collective call; returns what to log."""
        collected = self._collector.sums()
        if collected is None:
            return {}
        if self._collector.start is not None:
            self._set_start(self._collector.start)
        sums = self._reduced(collected)
        gradients, differing = self._gathered()
        reading = Reading(
            step,
            max_steps,
            sums,
            gradient=gradients,
            held=self._held,
            log_ratio=float(gradients.pop("log_ratio")),
            differing=differing,
        )
        self._forget_sums()
        self._report(self.health.read(reading), step)
        return {f"mask/health/{name}": value for name, value in self.health.flags().items()}

    def _set_start(self, start: Tensor) -> None:
        for mask, sums in self._reduced(start).items():
            self.health.start.setdefault(mask, (sums.mean, sums.kept_mean))

    def _reduced(self, local: Tensor) -> dict[str, MaskSums]:
        total = self.accelerator.reduce(local, reduction="sum").cpu().double()
        assert total.shape == (len(self.masks), SIZE)
        return dict(zip(self.masks, map(MaskSums, total), strict=True))

    def _gathered(self) -> tuple[dict[str, float], tuple[int, ...]]:
        """Largest |log-ratio| and gradients over all processes, and which processes' heads differ from the first's."""
        names = ["log_ratio", *self.masks]  # the same on every process, also where a head has no gradient or no shard
        gradients = (self._gradient.get(mask, -1.0) for mask in self.masks)
        values = [torch.as_tensor(value) for value in (self._collector.log_ratio(), *gradients)]
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        local = torch.stack([value.detach().to(device, dtype) for value in values])
        several = self.accelerator.num_processes > 1
        if several:  # halves, which a float64 holds exactly
            bits = fingerprint(self.masker)
            local = torch.cat([local, torch.tensor([bits >> 31, bits & (2**31 - 1)], dtype=dtype, device=device)])
        everywhere = self.accelerator.gather(local[None])
        prints = everywhere[:, len(names) :]
        differing = (prints != prints[0]).any(1).nonzero().flatten().tolist() if several else []
        largest = dict(zip(names, everywhere[:, : len(names)].amax(0).tolist(), strict=True))
        return {name: value for name, value in largest.items() if value >= 0 or value != value}, tuple(differing)

    def end_evaluation(
        self, prefix: str, metrics: Mapping[str, float], training: Mapping[str, float] | None, step: int
    ) -> dict[str, float]:
        """Compare held-out masks with those of the evaluation before, and with training. A collective call.

        Args:
            prefix: of the split (``eval``, ``eval_NAME``).
            metrics: the evaluation's averages, without prefix.
            training: the averages logged last in training, or None.
            step: optimiser steps made.

        Returns:
            What to add to the metrics, without prefix.
        """
        found = self.held_out.compare(prefix, step, self.accelerator)
        values = {} if training is None else overfit_gap(training, metrics, self.masks)
        if found is None:
            return values
        since, stability = found
        self._report(self.health.read_stability(step, since, stability), step)
        for mask, alike in stability.items():
            named = {"rank_correlation": alike.rank_correlation, "kept_overlap": alike.kept_overlap}
            values |= {f"mask/{mask}/{name}": value for name, value in named.items() if value is not None}
        return values

    # ---- consequences ----

    def _report(self, events: list[dict[str, Any]], step: int) -> None:
        for event in events:
            if not self.accelerator.is_main_process:
                continue
            if event["event"] == "appeared":
                logger.warning("Mask health (%s): %s", event["name"], event["message"])
            else:
                logger.warning("Mask health (%s, %s): no longer seen at step %d.", event["name"], event["mask"], step)
        appeared = [event["message"] for event in events if event["event"] == "appeared"]
        if self.on_failure == "stop" and self._anywhere(bool(appeared)) and self.stopped is None:
            self.stopped = {"step": step, "reason": " ".join(appeared)}
        if events:
            self.write()

    def _anywhere(self, flag: bool) -> bool:
        """Whether any process says so, so that all stop or none."""
        local = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.gather(local).amax() > 0)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training after a checkpoint, if it has to stop."""
        if self.stopped is not None and not self._has_acted:
            control.should_save = control.should_training_stop = self._has_acted = True

    on_evaluate = on_log

    # ---- files ----

    def content(self) -> dict[str, Any]:
        """What ``mask_health.json`` says."""
        return {
            "format": 1,
            "on_failure": self.on_failure,
            "stopped": self.stopped,
            "active": [vars(finding) for finding in self.health.findings],
            "history": self.health.history,
        }

    def write(self) -> None:
        """Write ``mask_health.json``, whole or not at all, on the process that saves."""
        if self.accelerator.is_main_process:
            _write_json(self.path, self.content())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new run forgets what an earlier one saw; a resumed one goes on."""
        self._forget_sums()
        self._heads = None
        self.stopped, self._has_acted = None, False
        if not self._restored or state.global_step == 0:
            self.health.reset()
            self.held_out.reset()
        self._restored = False
        self.write()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the file once more."""
        self.write()

    def save_state(self, folder: Path) -> None:
        """Put the monitor's state into a checkpoint's folder. On the process that saves."""
        _write_json(folder / HEALTH_FILE, {**self.content(), "state": self._state()})

    def _state(self) -> dict[str, Any]:
        return {"health": self.health.state(), "held_out": self.held_out.state()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.health.load_state(state["health"])
        self.held_out.load_state(state["held_out"])

    def memory(self) -> dict[str, Any]:
        """A copy of all that an evaluation may change; undone by :meth:`remember`."""
        return copy.deepcopy({"state": self._state(), "stopped": self.stopped, "has_acted": self._has_acted})

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Forget what has been seen since :meth:`memory`."""
        self._load_state(memory["state"])
        self.stopped, self._has_acted = memory["stopped"], memory["has_acted"]

    def restore(self, checkpoint: str) -> None:
        """Take over the state of a checkpoint; one without (made without monitor) starts afresh."""
        path = Path(checkpoint) / HEALTH_FILE
        if path.is_file():
            self._load_state(json.loads(path.read_text(encoding="utf-8"))["state"])
            self._restored = True


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
