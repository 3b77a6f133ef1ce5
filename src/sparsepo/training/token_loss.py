"""The loss of a batch inside Trainer's loop: reference, masks, policy and scorer, weighted by pairs of the whole step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.data_loader import SkipBatchSampler
from torch import Tensor, nn

from sparsepo.masks import Masker
from sparsepo.masks.base import NoiseKey
from sparsepo.objectives import Objective, PairScores
from sparsepo.scoring import Scorer
from sparsepo.scoring.dense import noise_key

from .collator import PAIR_WEIGHT, ROW_ID
from .mask_fit import LogRatioFit
from .metrics import MetricSums, collect_metrics
from .prefix import PrefixSharing
from .settings import ResolvedSettings
from .sharding import refuse_before_sharding
from .step import ReferenceView, StepOutput, evaluation_mode, policy_step, reference_view
from .trl_bridge import autocast_of, reference_adapter

# What a collated batch holds besides the model's own arguments
_OURS = ("completion_mask", ROW_ID, "token_weights", PAIR_WEIGHT, "ref_chosen_logps", "ref_rejected_logps")


class TokenLoss:
    """The parts of a Trainer that compute losses and scores. Mixed into the trainer before TRL's class."""

    # set by the trainer, or Trainer's own
    accelerator: Any
    args: Any
    state: Any
    model: Any
    ref_model: Any
    objective: Objective
    settings: ResolvedSettings
    masker: Masker | None
    scorer: Scorer
    prefix: PrefixSharing
    needs_reference: bool
    aux_loss_enabled: bool
    router_aux_loss_coef: float
    is_in_train: bool
    mask_fit: LogRatioFit | None = None
    _sums: dict[str, MetricSums]
    _new_tokens: Tensor | int

    def _reference_context(self) -> AbstractContextManager[Any]:
        """Context in which the reference may be run: with PEFT the adapter is switched off."""
        if self.ref_model is None and hasattr(self.model, "peft_config"):
            return reference_adapter(self.accelerator.unwrap_model(self.model))
        return nullcontext()

    def _view(self, batch: dict[str, Any], masker: Masker | None) -> ReferenceView:
        reference = self.ref_model if self.ref_model is not None else self.model
        return reference_view(reference, batch, masker, autocast_of(self.accelerator), self.prefix)

    def _reference_view(self, batch: dict[str, Any], need_kl: bool) -> ReferenceView:
        """What the reference says about a batch; ``need_kl``: whether the KL will be formed."""
        with self._reference_context():
            return self._view(batch, self.masker)

    def _noise(self, batch: dict[str, Any]) -> NoiseKey:
        return noise_key(batch, self.args.seed, self.state.global_step)

    def _step(
        self,
        model: nn.Module,
        batch: dict[str, Any],
        need_kl: bool,
        pair_weight: Tensor | None = None,
        complete: bool = True,
        anchor_share: float = 1.0,
        objective: Objective | None = None,
        fit: LogRatioFit | None = None,
    ) -> StepOutput:
        view = ReferenceView()
        if self.needs_reference:
            view = self._reference_view(batch, need_kl)
        return policy_step(
            model,
            batch,
            view,
            self.masker,
            self.objective if objective is None else objective,
            self.scorer,
            self._noise(batch),
            pair_weight=pair_weight,
            need_kl=need_kl and view.has_kl,
            complete=complete,
            anchor_share=anchor_share,
            fit=fit,
            router=self.aux_loss_enabled,
            autocast=autocast_of(self.accelerator),
            prefix=self.prefix,
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss over the pairs of the whole optimiser step (all micro-batches, all processes)."""
        mode = "train" if self.model.training else "eval"
        weight = self._pair_weight(inputs)
        share = 1 / weight.sum().clamp(min=1)
        if num_items_in_batch is not None:
            # DDP averages gradients over processes: undo it, the division is by the global count
            share = self.accelerator.num_processes / num_items_in_batch
        # in evaluation the KL is always shown, so that objectives without it can be compared
        need_kl = self.objective.needs_kl or mode == "eval"
        may_skip = mode == "train" and self.args.skip_masked and self.masker is not None
        complete = not may_skip or self._is_logging_step()
        if mode == "train":
            # a sample of the anchor's tokens is the same whether the step is logged or not: logging changes no training
            anchor_share = self.settings.anchor_share if may_skip else 1.0
            with self._observing(weight):
                objective = self._step_objective()
                step = self._step(
                    model, inputs, need_kl, weight * share, complete, anchor_share, objective, self.mask_fit
                )
        else:
            step = self._step(model, inputs, need_kl, weight * share, complete)
        loss = step.scored.loss
        if step.aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * step.aux_loss * weight.sum() * share
        if step.fit_error is not None:
            step.fit_error = step.fit_error / share  # weighted by pairs as the loss is: back to a sum over these pairs
        self._collect(mode, inputs, step, weight)
        if not return_outputs:
            return loss
        with torch.no_grad():  # compute_metrics was given: it wants logits
            arguments = {key: value for key, value in inputs.items() if key not in _OURS}
            return loss, model(**arguments, use_cache=False)

    def _is_logging_step(self) -> bool:
        """Whether the optimiser step under way will be logged; unknown (True) unless logging goes by steps."""
        if self.args.logging_strategy != "steps":
            return True
        step = self.state.global_step + 1
        is_due = step % max(int(self.state.logging_steps), 1) == 0 or (step == 1 and self.args.logging_first_step)
        return is_due or step == self.state.max_steps

    def _pair_weight(self, inputs: dict[str, Any]) -> Tensor:
        weight = inputs.get(PAIR_WEIGHT)
        if weight is None:
            weight = self._real_rows(len(inputs["input_ids"]) // 2)
        return weight.to(inputs["input_ids"].device, torch.float32)

    def _real_rows(self, pairs: int) -> Tensor:
        """1 for rows of the dataset, 0 for those that accelerate repeats to fill the last batch, (pairs,)."""
        state = self.accelerator.gradient_state
        weight = torch.ones(pairs)
        if state.in_dataloader and state.end_of_dataloader:
            rows = _rows_of_the_last_batch(state.active_dataloader)
            if rows > 0:
                first = self.accelerator.process_index * pairs
                weight[max(0, min(pairs, rows - first)) :] = 0
        return weight

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Pairs in this optimiser step over all micro-batches and processes; marks repeated rows on the way."""
        for index, batch in enumerate(batch_samples):
            pairs = len(batch["input_ids"]) // 2
            is_last = index == len(batch_samples) - 1
            if PAIR_WEIGHT not in batch:  # a filled stream marks its own
                batch[PAIR_WEIGHT] = self._real_rows(pairs) if is_last else torch.ones(pairs)
            batch[PAIR_WEIGHT] = batch[PAIR_WEIGHT].to(device)
        self._count_responses(batch_samples)
        total = sum((batch[PAIR_WEIGHT].sum() for batch in batch_samples), torch.zeros((), device=device))
        return self.accelerator.reduce(total, reduction="sum").clamp(min=1)

    def _collect(self, mode: str, inputs: dict[str, Any], step: StepOutput, weight: Tensor) -> None:
        sums = self._sums[mode]
        reads_masks = self.objective.needs_masks
        collect_metrics(sums, step.scored, weight, self.objective.beta, reads_masks, step.complete)
        if step.aux_loss is not None:
            sums.add("aux_loss", step.aux_loss * weight.sum(), weight.sum())
        if step.fit_error is not None:
            sums.add("mask/fit_error", step.fit_error, weight.sum())
        if mode == "train":
            self._new_tokens = self._new_tokens + (inputs["attention_mask"].sum(-1) * weight.repeat(2)).sum().long()
        else:
            sums.add("loss", (step.scored.pair_loss.loss * weight).sum(), weight.sum())
        self._watch(mode, inputs, step.scored.scores, weight)

    @torch.no_grad()
    def score(self, batch: dict[str, Any]) -> PairScores:
        """Per-token scores and masks of a collated batch in evaluation mode, with the KL, without gradient.

        Args:
            batch: output of ``trainer.data_collator``: 2P sequences, chosen first.

        Returns:
            PairScores of (P, S − 1) arrays; column t belongs to the token at position t + 1. ``kl`` is None where a
            reference cache (``precompute_ref``) holds none of these rows, as training without a KL leaves it.
        """
        refuse_before_sharding(self.model, self.accelerator)
        self._fit_start()
        batch = self._prepare_inputs(batch)  # type: ignore[attr-defined]
        try:
            with evaluation_mode(self.model):
                return self._step(self.model, batch, need_kl=True).scored.scores
        finally:
            if not self.is_in_train:
                self._restore_forward()

    def _watch(self, mode: str, inputs: dict[str, Any], scores: PairScores, weight: Tensor) -> None:
        """The health monitor's: look at the masks of a batch."""
        raise NotImplementedError

    def _observing(self, weight: Tensor) -> AbstractContextManager[None]:
        """The mask control's: keep what the controllers read."""
        raise NotImplementedError

    def _count_responses(self, batches: list[dict[str, Any]]) -> None:
        """The mask control's: prepare for the micro-batches of a step."""
        raise NotImplementedError

    def _step_objective(self) -> Objective:
        """The mask control's: the objective of the step under way."""
        raise NotImplementedError

    def _fit_start(self) -> None:
        """The trainer's: whatever start the mask still lacks."""
        raise NotImplementedError

    def _restore_forward(self) -> None:
        """The trainer's: give the models their own forward back."""
        raise NotImplementedError


def _rows_of_the_last_batch(loader: Any) -> int:
    """Rows of the dataset in the last batch over all processes; 0 or less where none is repeated or it is unknown.

    accelerate counts them, but not in the epoch that a resumed run begins in: the sampler that skips batches knows no sizes.
    """
    sampler = loader.batch_sampler
    if not isinstance(sampler, SkipBatchSampler) or loader.remainder != -1:
        return int(loader.remainder)
    inner = sampler.batch_sampler
    if inner.drop_last:
        return 0
    split = getattr(inner, "split_batches", False)
    return len(loader.dataset) % (inner.batch_size * (1 if split else getattr(inner, "num_processes", 1)))
