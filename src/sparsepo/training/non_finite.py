"""Steps whose loss, gradient or masks are not finite: caught before the optimiser moves, named, kept, and handled."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .collator import ROW_ID
from .finite import Finding, findings_of, gradient_findings, pairs_of
from .mask_collector import MaskCollector
from .metrics import MetricSums
from .monitor import MaskMonitor
from .randomness import nothing_drawn

logger = logging.getLogger(__name__)

FOLDER = "non_finite"
ON_NON_FINITE = ("stop", "skip")
IN_A_ROW = 20  # skipped steps after which nothing will mend itself
_KEPT = 20  # steps of a run whose batches are kept
_METADATA = "sparsepo_batch"


class NonFiniteError(ValueError):
    """A step that is not finite, with ``non_finite='stop'``; ``findings`` says what."""

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message)
        self.findings = findings


class NonFiniteSteps:
    """The parts of a Trainer that look at a step before it is made. Mixed into the trainer before TRL's class.

    The loss of every micro-batch and the norm that clipping computes anyway are looked at once per optimiser step. With
    fp16 a GradScaler looks for overflown gradients itself, which are part of its search for a scale: then only the loss is,
    and whether the search ends. Of a step that is left out nothing stays in what is logged or watched.
    """

    # set by the trainer, or Trainer's own
    accelerator: Any
    args: Any
    model: Any
    state: Any
    mask_grad_norm: Tensor | None
    mask_monitor: MaskMonitor | None
    processing_class: Any
    _sums: dict[str, MetricSums]
    skipped_steps = 0
    _skipped_in_a_row = 0
    _scaler_skipped_in_a_row = 0
    _steps_since_log = 0
    _skipped_since_log = 0
    _before_step: _Window | None = None
    _step_model: Any = None
    _step_batches: Sequence[dict[str, Any]] = ()
    _step_losses: tuple[Tensor, ...] = ()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; skipped steps are counted from here."""
        self.skipped_steps, self._skipped_in_a_row = 0, 0
        self._scaler_skipped_in_a_row = self._steps_since_log = self._skipped_since_log = 0
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._step_batches, self._step_losses, self._step_model, self._before_step = [], (), None, None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, which begins an optimiser step."""
        batches, count = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._step_batches, self._step_losses = batches, ()
        self._before_step = _Window.of(self)
        return batches, count

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Trainer's; remembers the loss."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self._step_model = model
        self._step_losses = (*self._step_losses, loss.detach().float().reshape(()))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's; afterwards all gradients of the step are there, and the optimiser has not moved yet."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        self._steps_since_log += 1
        if getattr(self.accelerator, "scaler", None) is not None:
            was_skipped = self.accelerator.optimizer_step_was_skipped  # the step before
            self._scaler_skipped_in_a_row = self._scaler_skipped_in_a_row + 1 if was_skipped else 0
        flags = self._local_flags(norm)
        if self.accelerator.num_processes > 1:
            local = torch.stack([torch.as_tensor(flag, device=self.accelerator.device).float() for flag in flags])
            flags = self.accelerator.gather(local[None]).amax(0).tolist()
        self._take_flags([float(flag) for flag in flags])
        return norm

    def _local_flags(self, norm: Any) -> list[Any]:
        """What all processes must agree on: whether the step is not finite here, whether fp16 finds no scale."""
        numbers = list(self._step_losses)
        if getattr(self.accelerator, "scaler", None) is None:
            numbers += [_plain(n, self.accelerator.device) for n in (norm, self.mask_grad_norm) if n is not None]
        if not numbers:  # a loop of its own, which Trainer's does not drive
            return [False, False]
        return [~torch.isfinite(torch.stack(numbers)).all(), self._scaler_skipped_in_a_row >= IN_A_ROW]

    def _take_flags(self, flags: list[float]) -> None:
        if flags[1]:
            self._end_search_for_scale()
        if flags[0]:
            self._handle_non_finite()
        else:
            self._skipped_in_a_row = 0

    # ---- consequences ----

    def _handle_non_finite(self) -> None:
        """Name it, keep it, and stop or leave the step out. A collective call."""
        step = self.state.global_step + 1
        findings, where = self._examine(step)
        self._drop_step()
        message = f"Step {step} is not finite: {_listed(findings)}. {where}"
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self.args.non_finite == "skip" and self._skipped_in_a_row < IN_A_ROW:
            logger.warning("%s The step is left out (non_finite='skip').", message)
            return
        reason = f"; {IN_A_ROW} steps in a row were skipped before" if self.args.non_finite == "skip" else ""
        saved = self._save_before_stop()
        raise NonFiniteError(f"{message} {saved}{reason}. See docs/robust_runs.md for causes.", findings)

    def _examine(self, step: int) -> tuple[list[Finding], str]:
        """Findings of the step under way, and where its batches are kept."""
        found = [self._diagnose(self._step_model, batch) for batch in self._step_batches]
        if not any(found) and self.accelerator.num_processes == 1:
            found = [self._diagnose_gradient(batch) for batch in self._step_batches]
        return [finding for own in found for finding in own], self._keep(step, found)

    def _end_search_for_scale(self) -> None:
        """Gradients overflow at any scale: no step would ever be made. A collective call."""
        step, scale = self.state.global_step + 1, float(self.accelerator.scaler.get_scale())
        findings, where = self._examine(step)
        cause = _listed(findings) if findings else "its gradients overflow when they are scaled"
        saved = self._save_before_stop()
        raise NonFiniteError(
            f"Step {step}: fp16's GradScaler has left out the {IN_A_ROW} steps before it, one after the other, and has come "
            f"down to a scale of {scale:g}: {cause}. {where} {saved}. Train with bf16 or in float32, or see "
            "docs/robust_runs.md for causes.",
            findings,
        )

    def _drop_step(self) -> None:
        """Leave nothing of the step for optimiser, controllers, fit, logs and monitor."""
        if self._before_step is not None:
            self._before_step.restore(self)
        self._skipped_since_log += 1
        if getattr(self.accelerator, "scaler", None) is None:  # a scaler has seen it and leaves the step out itself
            for parameter in self.model.parameters():
                parameter.grad = None
        self._forget_step()  # type: ignore[attr-defined]

    def _diagnose(self, model: nn.Module, batch: dict[str, Any]) -> list[Finding]:
        batch = self._prepare_inputs(batch)  # type: ignore[attr-defined]
        weight = self._pair_weight(batch)  # type: ignore[attr-defined]
        with torch.no_grad(), nothing_drawn():
            need_kl = self.objective.needs_kl  # type: ignore[attr-defined]
            step = self._step(model, batch, need_kl, weight / weight.sum().clamp(min=1))  # type: ignore[attr-defined]
        return findings_of(step, batch, self._text_of)

    def _diagnose_gradient(self, batch: dict[str, Any]) -> list[Finding]:
        """The pairs of a batch whose own gradient is not finite: each one alone, forward and backward."""
        batch = self._prepare_inputs(batch)  # type: ignore[attr-defined]
        found: list[Finding] = []
        with nothing_drawn():
            for pair in range(len(batch["input_ids"]) // 2):
                self._clear_gradients()
                alone = pairs_of(batch, pair)
                weight = torch.ones(1, device=alone["input_ids"].device)
                step = self._step(self.model, alone, self.objective.needs_kl, weight)  # type: ignore[attr-defined]
                if step.scored.loss.requires_grad:
                    step.scored.loss.backward()
                row = int(alone[ROW_ID][0]) if ROW_ID in alone else None
                found += gradient_findings(self._gradients(), row, pair)
        self._clear_gradients()
        return found

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def _clear_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def _text_of(self, token: int) -> str:
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        return str(tokenizer.decode([token]))

    def _save_before_stop(self) -> str:
        """The guard's: a checkpoint before the run ends."""
        raise NotImplementedError

    # ---- batches on disk ----

    def _keep(self, step: int, found: list[list[Finding]]) -> str:
        """Write the batches in question; says where they are. Every process writes its own."""
        folder = Path(self.args.output_dir) / FOLDER / f"step-{step:06d}"
        there = len(list(folder.parent.glob("step-*"))) if folder.parent.is_dir() else 0
        if there >= _KEPT and not folder.is_dir():
            return f"Its batch is not kept: {folder.parent} holds {_KEPT} steps already."
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number, (batch, own) in enumerate(zip(self._step_batches, found, strict=True)):
                if own or not any(found):
                    path = folder / f"batch-{self.accelerator.process_index}-{number}.safetensors"
                    stated = {"format": 1, "step": step, "findings": [finding.to_dict() for finding in own]}
                    _write_batch(path, batch, stated)
        except (OSError, SafetensorError) as error:
            return f"Its batch could not be kept in {folder} ({error})."
        return f"Its batch is in {folder} (trainer.replay_batch repeats it)."

    def replay_batch(self, path: str | Path) -> list[Finding]:
        """Repeat a batch that was kept because its step was not finite.

        Args:
            path: a ``.safetensors`` file of ``OUTPUT_DIR/non_finite/step-…``.

        Returns:
            What is not finite with the weights that the trainer's model has now: tokens and pairs, otherwise gradients,
            otherwise nothing. To see what the run saw, load the checkpoint named in its message first.

        Raises:
            ValueError: the file holds no batch.
        """
        batch, stated = read_batch(path)
        earlier, self.state.global_step = self.state.global_step, int(stated["step"]) - 1  # noise depends on it
        was_training = self.model.training
        self.model.train()
        try:
            return self._diagnose(self.model, batch) or self._diagnose_gradient(batch)
        finally:
            self.state.global_step = earlier
            self.model.train(was_training)
            self._restore_forward()  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's, with the number of steps that were left out, once there is one, and without their own numbers."""
        if self.model.training and self.skipped_steps:
            logs["non_finite/skipped_steps"] = self.skipped_steps
            if self._skipped_in_a_row:  # these are of the last step alone
                logs.pop("grad_norm", None)
                logs.pop("mask/grad_norm", None)
        if self.model.training and "loss" in logs:
            made = self._steps_since_log - self._skipped_since_log
            if not made:
                logs.pop("loss")
            elif self._skipped_since_log:  # Trainer divides by all steps
                logs["loss"] *= self._steps_since_log / made
            self._steps_since_log = self._skipped_since_log = 0
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


@dataclass
class _Window:
    """What a step adds to before anybody knows whether it will be left out."""

    sums: MetricSums
    collected: MaskCollector | None
    loss: Tensor | None

    @staticmethod
    def of(trainer: Any) -> _Window:
        monitor, loss = trainer.mask_monitor, getattr(trainer, "_tr_loss", None)
        return _Window(
            trainer._sums["train"].copy(),
            None if monitor is None else monitor.collected(),
            None if loss is None else loss.clone(),
        )

    def restore(self, trainer: Any) -> None:
        trainer._sums["train"] = self.sums
        if self.collected is not None and trainer.mask_monitor is not None:
            trainer.mask_monitor.collect_from(self.collected)
        if self.loss is not None:
            trainer._tr_loss.copy_(self.loss)


def read_batch(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a kept batch, and what was said about it: step and findings.

    Raises:
        ValueError: the file holds no batch that this library has kept.
    """
    try:
        with safe_open(path, framework="pt") as file:
            batch = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            stated = json.loads((file.metadata() or {})[_METADATA])
        if not {"input_ids", "attention_mask", "completion_mask"} <= batch.keys() or not isinstance(
            stated["step"], int
        ):
            raise KeyError("input_ids, attention_mask, completion_mask, step")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no batch that a run has kept: {type(error).__name__}: {error}") from error
    return batch, dict(stated)


def _write_batch(path: Path, batch: dict[str, Any], stated: dict[str, Any]) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(tensors, partial, {_METADATA: json.dumps(stated, sort_keys=True)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _listed(findings: list[Finding]) -> str:
    if not findings:
        return "the loss or the gradient, but not when its pairs are repeated here one by one"
    more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
    return "; ".join(map(str, findings[:3])) + more


def _plain(value: Any, device: torch.device) -> Tensor:
    """A norm as a plain scalar."""
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return torch.as_tensor(value, dtype=torch.float32, device=device).detach().reshape(())
