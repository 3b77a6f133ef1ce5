"""One batch through reference, masker, policy and scorer. No trainer state: what a step needs is handed to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.masks.base import Masker, MaskInputs, NoiseKey, TokenMasks
from sparsepo.objectives import Objective
from sparsepo.scoring import CachedReference, LMHead, Scorer, ScorerInputs, ScorerOutput
from sparsepo.scoring.dense import (
    block_outputs,
    mask_inputs,
    model_type_of,
)
from sparsepo.scoring.skipping import anchor_sample, tokens_that_count

from .mask_fit import LogRatioFit
from .penalty import add_size_penalty, without_l1
from .prefix import SEPARATE, PrefixSharing
from .sharding import within_head
from .trl_bridge import gathered_heads, head_source, install_step_forward, lm_head_of, load_balancing_loss

MASK_ATTRIBUTE = "sparsepo_mask"


@dataclass
class ReferenceView:
    """What the reference's forward leaves behind, or what a cache holds of it; None values were not needed.

    Args:
        last_hidden: last hidden states, (R, S, H).
        head: the reference's head, where a cache holds it.
        live_head: reads the head of a reference that was run: :meth:`whole_head`.
        block_states: outputs of the blocks, L × (R, S, H).
        activations: what the masker's tap has recorded.
        models: models whose heads are read when scoring: under ZeRO-3 they must be gathered then.
        shares_head: the reference reads the policy's own head (a cache, with ``last_hidden``).
        cached: numbers of a cache, instead of ``last_hidden`` and a head.
        masks: finished masks of a cache.
    """

    last_hidden: Tensor | None = None
    head: LMHead | None = None
    block_states: list[Tensor] | None = None
    activations: dict[str, list[Tensor]] | None = None
    models: list[Any] = field(default_factory=list)
    shares_head: bool = False
    cached: CachedReference | None = None
    masks: TokenMasks | None = None
    live_head: Callable[[], LMHead] | None = None

    def whole_head(self) -> LMHead | None:
        """The reference's head. Sharded weights are gathered in here: a collective call, inside ``gathered_heads``."""
        if self.live_head is None:
            return self.head
        with torch.no_grad():
            return self.live_head()

    @property
    def has_kl(self) -> bool:
        """Whether the KL can be formed with it."""
        return self.last_hidden is not None or (self.cached is not None and self.cached.has_kl)


def base_model_of(model: Any) -> Any:
    """The Hugging Face causal LM inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module's own mode is restored."""
    in_training = [module for module in model.modules() if module.training]
    if in_training:  # a reference of its own is in evaluation mode already
        model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def reference_view(
    model: nn.Module, batch: dict[str, Any], masker: Masker | None, autocast: Any, prefix: PrefixSharing = SEPARATE
) -> ReferenceView:
    """Run the reference's backbone once, without gradient, and keep what masks and scorer read.

    Args:
        model: the (wrapped) reference; for a PEFT policy the policy itself, inside ``reference_adapter``.
        batch: collated batch on the model's device.
        masker: the masker, or None where masks are not needed.
        autocast: the run's mixed-precision context.
        prefix: runs the backbone, each prompt once where it can.
    """
    view = ReferenceView()
    wants_states = masker is not None and masker.needs_hidden_states
    reads_last = masker is not None and masker.position == "token"

    def run(inner: Any) -> dict[str, Tensor]:
        with masker.tap(inner) if masker is not None else nullcontext() as activations:
            outputs = prefix.run(inner.base_model, batch, states=wants_states, activations=activations, last=reads_last)
        view.last_hidden, view.live_head, view.models = outputs.last_hidden_state, head_source(inner), [inner]
        view.activations = activations
        if outputs.hidden_states is not None and wants_states:
            view.block_states = block_outputs(outputs.hidden_states, outputs.last_hidden_state, model_type_of(inner))
        return {"last_hidden_state": outputs.last_hidden_state}

    install_step_forward(base_model_of(_unwrapped(model)))
    with torch.no_grad(), evaluation_mode(model), autocast:
        model(sparsepo_step=run)
    return view


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP or DeepSpeed."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model


@dataclass
class StepOutput:
    """Result of the policy's forward: the scorer's output and the auxiliary loss of a mixture of experts.

    ``complete`` says whether every response token was scored; ``fit_error`` how far the heads are from the log-ratios.
    """

    scored: ScorerOutput
    aux_loss: Tensor | None
    complete: bool = True
    fit_error: Tensor | None = None


def policy_step(
    model: nn.Module,
    batch: dict[str, Any],
    view: ReferenceView,
    masker: Masker | None,
    objective: Objective,
    scorer: Scorer,
    noise: NoiseKey | None,
    *,
    pair_weight: Tensor | None,
    need_kl: bool,
    complete: bool,
    anchor_share: float = 1.0,
    fit: LogRatioFit | None = None,
    router: bool,
    autocast: Any,
    prefix: PrefixSharing = SEPARATE,
) -> StepOutput:
    """Masks, policy backbone and scorer, all inside the wrapped model's forward, so that DDP and FSDP see the gradients.

    Args:
        model: the (wrapped) policy.
        batch: collated batch on the model's device.
        view: what the reference left.
        masker: the masker (a learned one is a submodule of the policy), or None.
        objective: the loss.
        scorer: hidden states and heads → scores and losses.
        noise: identity of the tokens for counter-based noise.
        pair_weight: weight of each pair in the loss, (P,); None means 1/P.
        need_kl: compute the KL even if the objective does not read it.
        complete: score every response token and collect entropy, mean logits and top-1 hits; otherwise tokens that no
            mask keeps are left out where that changes neither loss nor gradient.
        anchor_share: share of the tokens that no mask keeps which enter a KL anchor and ``fit``, weighed by its inverse;
            1: all of them.
            Whether the step is complete does not change the loss: the same tokens weigh in it.
        fit: fits the mask's heads to the policy's log-ratios.
        router: ask a mixture of experts for its auxiliary loss.
        prefix: runs the backbone, each prompt once where it can.
    """
    result: dict[str, StepOutput] = {}

    def run(inner: Any) -> dict[str, Tensor | None]:
        masks = None if masker is None else compute_masks(masker, batch, view, noise)
        outputs = prefix.run(inner.base_model, batch, router=router, last=False)
        response = batch["completion_mask"][:, 1:].bool()
        kept, anchor_weight = _tokens_to_score(masker, masks, response, objective, noise, anchor_share, fit)
        kept = None if complete else kept
        found: list[tuple[ScorerOutput, Tensor | None]] = []

        def score() -> Tensor:
            policy_head = lm_head_of(inner)
            inputs = ScorerInputs(
                targets=batch["input_ids"][:, 1:],
                response_mask=response,
                policy_hidden=outputs.last_hidden_state[:, :-1],
                policy_head=policy_head,
                reference_hidden=None if view.last_hidden is None else view.last_hidden[:, :-1],
                reference_head=policy_head if view.shares_head else view.whole_head(),
                masks=masks,
                kept=kept,
                pair_weight=pair_weight,
                statistics=complete,
                anchor_weight=anchor_weight,
                cached=view.cached,
            )
            scored, error = _scored(scorer, inputs, objective, need_kl), None
            if fit is not None and masks is not None:
                error = fit.add(scored, masks, inputs.weights(), anchor_weight)
            found.append((scored, error))
            return scored.loss

        with gathered_heads(inner, *view.models):
            loss = within_head(inner, score)
        scored, error = found[0]
        aux_loss = load_balancing_loss(inner, outputs.router_logits, batch["attention_mask"]) if router else None
        result["step"] = StepOutput(scored, aux_loss, complete=kept is None, fit_error=error)
        # returned too: wrappers look for gradients in what forward returns
        return {"loss": loss, "aux_loss": aux_loss}

    install_step_forward(base_model_of(_unwrapped(model)))
    with autocast:
        returned = model(sparsepo_step=run)
    step = result["step"]
    step.scored.loss, step.aux_loss = returned["loss"], returned["aux_loss"]
    return step


def _scored(scorer: Scorer, inputs: ScorerInputs, objective: Objective, need_kl: bool) -> ScorerOutput:
    masks = inputs.masks
    if masks is None or (masks.reward_size is None and masks.kl_size is None):
        return scorer(inputs, objective, need_kl)
    scored = scorer(inputs, without_l1(objective), need_kl)
    add_size_penalty(scored, masks, objective, inputs.weights())
    return scored


def _tokens_to_score(
    masker: Masker | None,
    masks: TokenMasks | None,
    response: Tensor,
    objective: Objective,
    noise: NoiseKey | None,
    anchor_share: float,
    fit: LogRatioFit | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The tokens that may not be left out (None: all), and their weights in the KL anchor and the fit (None: ones)."""
    if masker is None:
        return None, None
    kept = tokens_that_count(masks, response, objective.declared_tokens, masker.flat_at_zero)
    if kept is None or (objective.kl_anchor == 0 and fit is None):
        return kept, None
    if anchor_share == 1 or noise is None:
        return None, None
    return anchor_sample(kept, response, noise, anchor_share)


def compute_masks(masker: Masker, batch: dict[str, Any], view: ReferenceView, noise: NoiseKey | None) -> TokenMasks:
    """The masks of a batch's target tokens."""
    if view.masks is not None:
        return view.masks
    if masker.needs_weights and "token_weights" not in batch:
        raise ValueError(
            "The batch holds no token_weights, which the mask reads: collate with sparsepo.training.PreferenceCollator "
            "(the trainer's default), or add them to your collator's batch."
        )
    inputs: MaskInputs = mask_inputs(batch, noise, view.block_states, view.activations)
    return masker.token_masks(inputs)
