"""Scoring by whole rows of logits: the readable truth that faster scorers are compared with.

Two doors lead to the same formulas: :func:`dense_pair_scores` asks two models for their own logits;
:class:`DenseScorer` takes hidden states and heads, as the trainer hands them to any scorer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsepo.masks.base import Masker, MaskInputs, NoiseKey, TokenMasks
from sparsepo.masks.noise import content_hash
from sparsepo.objectives.scores import PairLoss, PairScores, TokenScores

from .cached import CachedReference
from .head import LMHead
from .tokens import cached_kl, token_kl, token_logps, token_statistics


@dataclass
class ScorerInputs:
    """What the trainer hands to a scorer for P pairs: R = 2P sequences, chosen first, T target tokens each.

    Args:
        targets: token ids, (R, T).
        response_mask: true at response tokens, bool, (R, T).
        policy_hidden: the policy's last hidden states at the positions that predict the targets, (R, T, H).
        policy_head: the policy's head.
        reference_hidden, reference_head: the reference's, or None where no reference is needed.
        masks: token masks, or None for ones.
        kept: tokens to score, bool (R, T), a subset of the response tokens; None means all of them. The others must count
            for nothing in the objective and have flat masks: they are left out of the computation, and their scores are 0.
        pair_weight: weight of each pair in ``ScorerOutput.loss``, (P,); None means 1/P. Known before the scores are, so that
            a scorer may form gradients while it computes.
        statistics: also return entropy, mean logits and top-1 hits of the policy.
        anchor_weight: weight of each token in the KL anchor, (R, T); None means one for every response token. Where only
            a random share of the tokens is kept for it, those weigh the inverse of their probability and the others 0.
        cached: the reference read from a cache; ``reference_hidden`` and ``reference_head`` are then not read.
    """

    targets: Tensor
    response_mask: Tensor
    policy_hidden: Tensor
    policy_head: LMHead
    reference_hidden: Tensor | None = None
    reference_head: LMHead | None = None
    masks: TokenMasks | None = None
    kept: Tensor | None = None
    pair_weight: Tensor | None = None
    statistics: bool = False
    anchor_weight: Tensor | None = None
    cached: CachedReference | None = None

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference to compare with."""
        return self.cached is not None or (self.reference_hidden is not None and self.reference_head is not None)

    def check_cached(self, need_kl: bool) -> None:
        """Raise ``ValueError`` where a cached reference does not suit the head or the need."""
        if self.cached is None or not need_kl:
            return
        if not self.cached.has_kl:
            raise ValueError("The cached reference holds log-probabilities only, but the objective reads the KL.")
        head = self.policy_head
        trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
        if head.softcap is not None or (trained and torch.is_grad_enabled()):
            raise ValueError(
                "A cached E_q[W] gives the KL of a frozen head without soft-cap only; this head is "
                f"{'trained' if trained else 'capped'}: cache the reference's hidden states and head instead."
            )

    @property
    def scored(self) -> Tensor:
        """The tokens to score, bool, (R, T)."""
        return self.response_mask if self.kept is None else self.kept

    def weights(self) -> Tensor:
        """Weight of each pair, float32, (P,)."""
        pairs = len(self.targets) // 2
        if self.pair_weight is not None:
            return self.pair_weight.to(self.targets.device, torch.float32)
        return torch.full((pairs,), 1 / max(pairs, 1), device=self.targets.device)


@dataclass
class ScorerOutput:
    """What a scorer returns.

    Args:
        loss: Σ_p weight_p · loss_p, a scalar: the one differentiable value that every scorer gives.
        pair_loss: the objective's result, un-reduced.
        scores: the scores the objective saw; values a scorer did not compute are None.
        statistics: (R, T) arrays, zero outside responses; empty unless asked for.
    """

    loss: Tensor
    pair_loss: PairLoss
    scores: PairScores
    statistics: dict[str, Tensor] = field(default_factory=dict)


# Model types whose ``hidden_states`` begin with the first block's output
_WITHOUT_EMBEDDINGS = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv"})


class Scorer(Protocol):
    """hidden states, heads, masks and an objective → losses. ``need_kl`` asks for the KL beyond the objective's need."""

    def __call__(
        self, inputs: ScorerInputs, objective: Callable[[PairScores], PairLoss], need_kl: bool
    ) -> ScorerOutput: ...


def split_pairs(
    logps: Tensor,
    ref_logps: Tensor | None,
    kl: Tensor | None,
    masks: TokenMasks | None,
    response_mask: Tensor,
    anchor_weight: Tensor | None = None,
) -> PairScores:
    """(2P, T) arrays, chosen rows first → PairScores of (P, T) sides."""
    pairs = response_mask.shape[0] // 2

    def side(rows: slice) -> TokenScores:
        return TokenScores(
            policy_logps=logps[rows],
            ref_logps=None if ref_logps is None else ref_logps[rows],
            kl=None if kl is None else kl[rows],
            reward_mask=None if masks is None else masks.reward[rows],
            kl_mask=None if masks is None else masks.kl[rows],
            response_mask=response_mask[rows],
            anchor_weight=None if anchor_weight is None else anchor_weight[rows],
        )

    return PairScores(side(slice(None, pairs)), side(slice(pairs, None)))


class DenseScorer:
    """Scores the response tokens through rows of logits, (N, V) at once, by autograd."""

    def __call__(
        self, inputs: ScorerInputs, objective: Callable[[PairScores], PairLoss], need_kl: bool
    ) -> ScorerOutput:
        scores, statistics = self.scores(inputs, need_kl)
        pair_loss = objective(scores)
        loss = (pair_loss.loss * inputs.weights()).sum()
        return ScorerOutput(loss, pair_loss, scores, statistics)

    def scores(self, inputs: ScorerInputs, need_kl: bool) -> tuple[PairScores, dict[str, Tensor]]:
        """Per-token scores of every response token; (R, T) arrays hold zeros elsewhere."""
        inputs.check_cached(need_kl)
        keep = inputs.scored

        def scatter(values: Tensor) -> Tensor:
            # masked_scatter keeps the graph alive when no token is kept: an empty batch gives zero gradients, not None
            return values.new_zeros(keep.shape).masked_scatter(keep, values)

        targets = inputs.targets[keep]  # (N,)
        policy = inputs.policy_head.logits(inputs.policy_hidden[keep])  # (N, V)
        statistics = token_statistics(policy, targets) if inputs.statistics else {}
        logps = scatter(token_logps(policy, targets))
        ref_logps = kl = None
        if inputs.cached is not None:
            cached = inputs.cached
            ref_logps = scatter(cached.logps[keep].to(logps.dtype))
            if need_kl:
                assert cached.log_normaliser is not None
                assert cached.hidden is not None
                assert cached.expected_weight is not None
                kl = scatter(cached_kl(policy, inputs.policy_hidden[keep], inputs.policy_head.scale,
                                       cached.log_normaliser[keep], cached.hidden[keep],
                                       cached.expected_weight[keep]))  # fmt: skip
        elif inputs.reference_hidden is not None and inputs.reference_head is not None:
            with torch.no_grad():
                reference = inputs.reference_head.logits(inputs.reference_hidden[keep])
                ref_logps = scatter(token_logps(reference, targets))
            kl = scatter(token_kl(reference, policy)) if need_kl else None
        scores = split_pairs(logps, ref_logps, kl, inputs.masks, inputs.response_mask, inputs.anchor_weight)
        return scores, {name: scatter(values) for name, values in statistics.items()}


def row_identity(batch: dict[str, Any]) -> Tensor:
    """An int64 identity of each of the 2P sequences: from ``row_id`` (P,) where the batch has it, else from its tokens."""
    row_id = batch.get("row_id")
    if row_id is None:
        return content_hash(batch["input_ids"], batch["attention_mask"])
    return torch.cat([row_id * 2, row_id * 2 + 1])


def token_positions(attention_mask: Tensor) -> Tensor:
    """Index of every token in its unpadded sequence, int64, (R, S); padding before the first token gets 0."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def noise_key(batch: dict[str, Any], seed: int, step: int) -> NoiseKey:
    """Identity of the target tokens of a batch, for counter-based noise."""
    return NoiseKey(seed, step, row_identity(batch), token_positions(batch["attention_mask"])[:, 1:])


def mask_inputs(
    batch: dict[str, Any], noise: NoiseKey | None, hidden_states: Any = None, activations: Any = None
) -> MaskInputs:
    """What a masker reads, from a collated batch and the reference's forward."""
    weights = batch.get("token_weights")
    return MaskInputs(
        response_mask=batch["completion_mask"][:, 1:].bool(),
        hidden_states=hidden_states,
        activations=activations,
        weights=None if weights is None else weights[:, 1:],
        noise=noise,
    )


def block_outputs(
    hidden_states: tuple[Tensor, ...], last_hidden_state: Tensor | None = None, model_type: str = ""
) -> list[Tensor]:
    """Outputs of the L blocks, the last one after the final norm, from a model's ``hidden_states``.

    Args:
        hidden_states: embeddings, then the blocks' outputs; of state-space models the outputs of all blocks, then the
            final norm's.
        last_hidden_state: the final norm's output, where it is at hand.
        model_type: the config's, which tells the two layouts apart.
    """
    blocks = list(hidden_states[1:])
    if model_type in _WITHOUT_EMBEDDINGS:
        blocks = [*hidden_states[:-2], hidden_states[-1]]
    if last_hidden_state is not None:
        blocks[-1] = last_hidden_state
    return blocks


def forward_arguments(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward over the batch; positions are given only where left padding makes them necessary."""
    attention_mask = batch["attention_mask"]
    arguments = {"input_ids": batch["input_ids"], "attention_mask": attention_mask, "use_cache": False}
    if not bool(attention_mask[:, 0].all()) and accepts_position_ids(model):
        arguments["position_ids"] = token_positions(attention_mask)
    return arguments


def model_type_of(model: Any) -> str:
    """The config's ``model_type``, empty for a module without one."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def accepts_position_ids(model: Any) -> bool:
    """Whether the model class's forward has a ``position_ids`` argument (state-space models have none)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "position_ids" in inspect.signature(type(base).forward).parameters


def dense_pair_scores(
    policy: nn.Module,
    reference: nn.Module,
    batch: dict[str, Any],
    mask: Masker | None = None,
    *,
    seed: int = 0,
    step: int = 0,
) -> PairScores:
    """All per-token scores of a batch from the models' own logits.

    Args:
        policy: a Hugging Face causal LM; gradients flow into it.
        reference: the frozen reference; run without gradient, in evaluation mode.
        batch: TRL's preference collator output: ``input_ids``, ``attention_mask``, ``completion_mask``, each (2P, S),
            chosen rows first, then rejected; optionally ``row_id`` (P,) and ``token_weights`` (2P, S).
        mask: a masker, or None for ones. Gradients flow into a learned one.
        seed, step: identify the noise of random masks and mask dropout.

    Returns:
        PairScores with (P, S − 1) arrays: column t belongs to the token at position t + 1.

    Example:
        >>> scores = dense_pair_scores(policy, reference, batch, mask)  # doctest: +SKIP
        >>> get_objective("sparsepo", beta=0.8)(scores).loss  # doctest: +SKIP
    """
    was_training = reference.training
    reference.eval()
    try:
        with torch.no_grad(), mask.tap(reference) if mask is not None else nullcontext() as activations:
            wants_states = mask is not None and mask.needs_hidden_states
            outputs = reference(**forward_arguments(reference, batch), output_hidden_states=wants_states)
    finally:
        reference.train(was_training)
    masks = None
    if mask is not None:
        mask.check_fits(reference)
        states = block_outputs(outputs.hidden_states, None, model_type_of(reference)) if wants_states else None
        masks = mask.token_masks(mask_inputs(batch, noise_key(batch, seed, step), states, activations))
    targets = batch["input_ids"][:, 1:]
    reference_logits = upcast(outputs.logits[:, :-1])
    policy_logits = upcast(policy(**forward_arguments(policy, batch)).logits[:, :-1])
    return split_pairs(
        token_logps(policy_logits, targets),
        token_logps(reference_logits, targets),
        token_kl(reference_logits, policy_logits),
        masks,
        batch["completion_mask"][:, 1:].bool(),
    )


def upcast(logits: Tensor) -> Tensor:
    """Half precision → float32; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
