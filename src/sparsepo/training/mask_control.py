"""The mask's course during training: sparsity controller, fit to log-ratios, hold, and warm-up of the L1 weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from sparsepo.masks import LearnedMask, Masker
from sparsepo.masks.controller import SAMPLE_TOKENS, SparsityController
from sparsepo.masks.projection import Index
from sparsepo.objectives import Objective, SparsePO

from .collator import PAIR_WEIGHT
from .mask_fit import LogRatioFit
from .schedules import MaskSchedule
from .settings import ResolvedSettings


class MaskControl:
    """The parts of a Trainer that steer the mask by the step. Mixed into the trainer before TRL's class."""

    # set by the trainer, or Trainer's own
    accelerator: Any
    args: Any
    state: Any
    objective: Objective
    masker: Masker | None
    settings: ResolvedSettings

    def _set_up_control(self) -> None:
        """Make the controllers that the settings ask for, by head; the masker is there."""
        self.controllers: dict[str, SparsityController] = {}
        # of this process and step: states of some tokens, (N, H) a layer, and the heads' numbers there, (N, heads)
        self._seen: list[tuple[list[Tensor], Tensor]] = []
        self._looked_at = 1.0
        self._asked: dict[str, float] = {}
        targets = self.settings.target_sparsity
        if targets and isinstance(self.masker, LearnedMask):
            self.controllers = {
                name: SparsityController.for_gate(self.masker.gate, targets[name])
                for name in self.masker.heads
                if name in targets
            }
            for name in self.controllers:  # of a mask that an earlier run has steered; resuming puts it back
                self.masker.get_buffer(f"heads.{name}.start_sparsity").fill_(-1.0)
        self.mask_fit: LogRatioFit | None = None
        if self.settings.log_ratio_weight and isinstance(self.masker, LearnedMask):
            self.masker.shows_values = True
            self.mask_fit = LogRatioFit(self.settings.log_ratio_weight, self.masker)
            for name in self.masker.heads:
                self.masker.get_buffer(f"heads.{name}.signal_size").fill_(0.0)
        elif isinstance(self.masker, LearnedMask):
            self.masker.shows_values = False
        if self.controllers or self.mask_fit is not None:
            self.add_callback(_Moves(self))  # type: ignore[attr-defined]

    @property
    def mask_schedule(self) -> MaskSchedule:
        """The mask's schedule."""
        return self.settings.mask_schedule

    def _step_objective(self) -> Objective:
        """The objective of the training step under way: with the L1 weight as far as it has risen."""
        objective = self.objective
        if not isinstance(objective, SparsePO) or not self.mask_schedule.l1_warmup:
            return objective
        factor = self.mask_schedule.l1_factor(self.state.global_step, self.state.max_steps)
        return replace(objective, l1_reward=factor * objective.l1_reward, l1_kl=factor * objective.l1_kl)

    def _count_responses(self, batches: list[dict[str, Any]]) -> None:
        """Before an optimiser step: which share of its tokens the controllers look at. A collective call.

        Args:
            batches: all micro-batches of this process, with the weights of their pairs.
        """
        if not self.controllers:
            return
        tokens = [
            (
                batch["completion_mask"][:, 1:].sum(-1)
                * batch[PAIR_WEIGHT].to(batch["completion_mask"].device).repeat(2)
            ).sum()
            for batch in batches
        ]
        own = torch.as_tensor(sum(float(count) for count in tokens), device=self.accelerator.device)
        self._looked_at = SAMPLE_TOKENS / max(float(self.accelerator.reduce(own, reduction="sum")), 1.0)

    @contextmanager
    def _observing(self, weight: Tensor) -> Iterator[None]:
        """Keep the states of some tokens of a training batch, and the head's numbers there, for the controllers.

        Which tokens follows from their identity, so that neither batching nor the number of processes matters.

        Args:
            weight: weight of each pair, (P,): rows that only fill a batch are left out.
        """
        masker = self.masker
        if not self.controllers or not isinstance(masker, LearnedMask):
            yield
            return

        @torch.no_grad()
        def observe(states: list[Tensor], index: Index, uniform: Tensor | None) -> None:
            rows, columns = index
            looked_at = weight.to(rows.device).repeat(2)[rows] > 0
            if uniform is not None:
                looked_at &= uniform < self._looked_at
            places = rows[looked_at], columns[looked_at]
            # a model that is spread over devices leaves its states on several
            kept = [state[places[0].to(state.device), places[1].to(state.device)] for state in states]
            self._seen.append((kept, torch.stack(masker.mixed_values(states, places), dim=1)))

        masker.observer = observe
        try:
            yield
        finally:
            masker.observer = None

    @torch.no_grad()
    def _move_offsets(self) -> None:
        """After an optimiser step: let every controller follow it. A collective call."""
        masker, done, total = self.masker, self.state.global_step, self.state.max_steps
        assert isinstance(masker, LearnedMask)
        seen, self._seen = self._seen, []
        if self.mask_schedule.is_held(done, total):
            return
        # before and after the step, of every head; a row more, so that no process comes with none
        count = 2 * len(masker.heads)
        rows = [torch.full((1, count), torch.nan, device=self.accelerator.device)]
        for states, before in seen:
            rows.append(torch.cat([before, self._numbers_now(masker, states)], dim=1).to(rows[0]))
        values = torch.cat(rows)
        if self.accelerator.num_processes > 1:
            values = self.accelerator.gather(self.accelerator.pad_across_processes(values, pad_index=torch.nan))
        values = values[~values[:, 0].isnan()]
        progress = self.mask_schedule.sparsity_progress(done, total)
        for number, (name, head) in enumerate(zip(masker.heads, masker.mask_heads(), strict=True)):
            if name in self.controllers:
                old, new = values[:, number], values[:, count // 2 + number]
                self._asked[name] = self.controllers[name].update(head, old, new, progress)

    def _numbers_now(self, masker: LearnedMask, states: list[Tensor]) -> Tensor:
        """The heads' numbers at kept states under the weights as they are, (N, heads)."""
        tokens = len(states[0])
        device = self.accelerator.device
        places = torch.zeros(tokens, dtype=torch.int64, device=device), torch.arange(tokens, device=device)
        return torch.stack(masker.mixed_values([state[None] for state in states], places), dim=1)

    def _forget_step(self) -> None:
        """Drop what was seen of a step that is not made."""
        self._seen = []
        if self.mask_fit is not None:
            self.mask_fit.forget()

    def _control_logs(self) -> dict[str, float]:
        """What the controllers ask for and where they stand, by mask."""
        logs: dict[str, float] = {}
        if not self.controllers or not isinstance(self.masker, LearnedMask):
            return logs
        for name, head in zip(self.masker.heads, self.masker.mask_heads(), strict=True):
            if name in self._asked:
                for kind in ("reward", "kl") if name == "shared" else (name,):
                    logs[f"mask/{kind}/target_sparsity"] = self._asked[name]
                    logs[f"mask/{kind}/offset"] = float(head.offset)
                    logs[f"mask/{kind}/scale"] = float(head.scale)
        return logs


class _Moves(TrainerCallback):
    """Moves the offsets before the step is logged, evaluated and saved."""

    def __init__(self, control: MaskControl) -> None:
        self.control = control

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin without what an interrupted step left."""
        self.control._forget_step()
        self.control.mask_schedule.check_fits(state.max_steps, has_target=bool(self.control.controllers))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the controllers act, and the fit count."""
        if self.control.controllers:
            self.control._move_offsets()
        if self.control.mask_fit is not None:
            self.control.mask_fit.follow(self.control.accelerator)
