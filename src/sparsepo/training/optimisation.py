"""The mask head's own optimiser group and gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.masks import Masker

from .checkpoints import attach_mask, detach_mask
from .schedules import schedule_mask_groups
from .settings import ResolvedSettings
from .sharding import average_gradients, is_fsdp2

_NOT_DECAYED = ("bias", "norm")


class MaskOptimisation:
    """The parts of a Trainer that optimise, extended to the mask head. Mixed into the trainer before TRL's class."""

    # set by the trainer
    args: Any
    model: Any
    accelerator: Any
    masker: Masker | None
    settings: ResolvedSettings
    _mask_waits = False  # for the policy to be sharded
    mask_grad_norm: Tensor | None = None  # read where it is logged: reading waits for the device

    def _mask_parameters(self) -> list[nn.Parameter]:
        return [] if self.masker is None else [p for p in self.masker.parameters() if p.requires_grad]

    def _mask_rates(self) -> tuple[float, float, float]:
        """Learning rate, weight decay and clip norm of the head (a mask that was handed in has no settings of its own)."""
        from .settings import MASK_LEARNING_RATE_FACTORS

        training = self.settings.mask_training
        if training is not None:
            return training.learning_rate, training.weight_decay, training.max_grad_norm
        config = self.args
        rate = config.mask_learning_rate
        return (
            MASK_LEARNING_RATE_FACTORS[self.settings.log_ratio_weight > 0] * config.learning_rate
            if rate is None
            else rate,
            0.01 if config.mask_weight_decay is None else config.mask_weight_decay,
            config.max_grad_norm if config.mask_max_grad_norm is None else config.mask_max_grad_norm,
        )

    def _refuse_foreign_optimizer(self, optimizers: tuple[Any, Any]) -> None:
        """An optimiser made by the user must hold the mask head's parameters, or they would never train."""
        optimizer, scheduler = optimizers
        if scheduler is not None and self.settings.mask_schedule.changes_rates:
            raise ValueError(
                "optimizers=(…, scheduler): a scheduler of your own decides the mask head's rate too; leave it out, or "
                "leave mask_hold_steps, mask_lr_scheduler_type and mask_warmup_steps unset."
            )
        if optimizer is None:
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in self._mask_parameters()):
            raise ValueError(
                "optimizers=(optimizer, …) does not hold the mask head's parameters, which would never train. Build the "
                "mask first, put mask.parameters() into the optimizer and hand it over as mask=…, or leave optimizers unset."
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimiser for the policy, and groups of its own for the mask head."""
        if self.optimizer is not None:  # type: ignore[has-type]
            return self.optimizer  # type: ignore[has-type]
        parameters = self._mask_parameters()
        apart = bool(parameters) and is_fsdp2(self.accelerator)
        if apart:
            detach_mask(self.model)  # accelerate shards what it finds there; create_scheduler brings the head back
        for parameter in parameters:
            parameter.requires_grad_(False)  # Trainer collects what requires a gradient: not these
        try:
            optimizer = super().create_optimizer(model)  # type: ignore[misc]
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)
        if is_fsdp2(self.accelerator):
            # sharded checkpoints lose the settings of a group without parameters (LoRA: the biases')
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        if parameters and not apart:
            self._add_mask_groups(optimizer)
        self._mask_waits = apart
        self.optimizer = optimizer
        return optimizer

    def _add_mask_groups(self, optimizer: Any) -> None:
        assert self.masker is not None
        rate, decay, _ = self._mask_rates()
        named = [(name, p) for name, p in self.masker.named_parameters() if p.requires_grad]
        for decayed in (True, False):
            group = [p for name, p in named if decayed != any(word in name for word in _NOT_DECAYED)]
            optimizer.add_param_group({"params": group, "lr": rate, "weight_decay": decay if decayed else 0.0})

    def _join_mask(self) -> None:
        """Give a policy that FSDP2 has just sharded its mask head, whole on every process."""
        if not self._mask_waits:
            return
        self._mask_waits = False
        assert self.masker is not None
        attach_mask(self.model, self.masker, self.accelerator.device)
        self._add_mask_groups(self.optimizer)
        self._fit_start()  # type: ignore[attr-defined]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's step of a micro-batch; after the last one the gradients of an unsharded mask head are averaged."""
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.accelerator.sync_gradients and is_fsdp2(self.accelerator):
            average_gradients(self._mask_parameters(), self.accelerator)
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Trainer's schedule; the mask head's groups follow their own where the settings say so."""
        self._join_mask()  # Trainer calls this as soon as model and optimiser are sharded
        is_new = self.lr_scheduler is None  # type: ignore[has-type]
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        schedule = self.settings.mask_schedule
        if not is_new or not schedule.changes_rates:
            return scheduler
        schedule.check_fits(num_training_steps, has_target=bool(self.settings.target_sparsity))
        optimizer = self.optimizer if optimizer is None else optimizer
        mine = {id(p) for p in self._mask_parameters()}
        groups = [i for i, group in enumerate(optimizer.param_groups) if any(id(p) in mine for p in group["params"])]
        self.lr_scheduler = schedule_mask_groups(scheduler, optimizer, groups, schedule, self.args, num_training_steps)
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip policy and mask head apart: the head's gradients are of another scale. Returns the policy's norm."""
        own = self._mask_parameters()
        if not own:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        mine = {id(p) for p in own}
        policy = [p for p in model.parameters() if id(p) not in mine]
        norm = self.accelerator.clip_grad_norm_(policy, self.args.max_grad_norm)
        # after accelerate's call: fp16 gradients are unscaled once, for all parameters
        limit = self._mask_rates()[2]
        self.mask_grad_norm = torch.nn.utils.clip_grad_norm_(own, limit if limit > 0 else float("inf"))
        return norm
