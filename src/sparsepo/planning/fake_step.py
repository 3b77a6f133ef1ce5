"""One training step on fake tensors: reference, mask, policy, scorer, backward, as training/step.py runs them."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsepo.masks import LearnedMask

from .fake_device import as_on_cuda
from .fake_models import base_of, fake, forward_arguments, optimizer_state, output_embeddings, with_adapters
from .four_bit import adapters_in_half, scales_in, with_four_bits
from .ledger import Ledger, bytes_of, dtype_of
from .needs import MASK_MAP, Needs, needs_of
from .scorer_memory import ScorerShape, ScorerStandIn, products_of
from .settings import PlanSettings
from .shapes import ModelShape, meta_model

PHASES = ("reference", "mask", "policy", "scoring", "backward")


@dataclass(frozen=True)
class StepRecord:
    """What one micro-batch does on one device.

    Args:
        peak: bytes of each part when their (weighted) sum is largest.
        peak_phase: when that is.
        phases: largest sum in each phase.
        flops: floating-point operations of each phase, the scorer's in ``head``.
        operations: kernels of each phase, about.
        traffic: bytes that operations other than products move, of each phase.
        rows: scored tokens.
        trainable: numbers that are trained, without the mask's.
        mask_parameters: of the mask's heads.
        weights, reference: bytes of the policy's and the reference's weights.
        trainable_bytes: bytes of the trained weights.
        scales: bytes of the scales of 4-bit weights, which no sharding divides.
    """

    peak: dict[str, int]
    peak_phase: str
    phases: dict[str, float]
    flops: dict[str, int]
    operations: dict[str, int]
    traffic: dict[str, int]
    rows: int
    trainable: int
    mask_parameters: int
    weights: int
    reference: int
    trainable_bytes: int
    scales: int = 0


def record_step(
    shape: ModelShape,
    settings: PlanSettings,
    tokens: int,
    response_tokens: int,
    factors: dict[str, float] | None = None,
    device_bytes: float = 80 << 30,
    on_gpu: bool = True,
) -> StepRecord:
    """Follow a step.

    Args:
        shape: the model.
        settings: the run.
        tokens: S, tokens of a row of the batch, padding included.
        response_tokens: scored tokens of a sequence.
        factors: on a part's bytes in the sum whose peak is looked for.
        device_bytes: of the device, of which the scorer's budget is a share.
        on_gpu: a GPU's kernels and tiles.

    Raises:
        ValueError: the architecture's step depends on values (some mixtures of experts).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    step = _Step(shape, settings, needs_of(settings), tokens, response_tokens, device_bytes, on_gpu)
    step.ledger.factors = factors or {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and PEFT about models that nobody will run
        models = step.meta_models()
        try:
            with FakeTensorMode(), step.ledger, as_on_cuda(settings, on_gpu):
                step.materialise(*models)
                step.run()
        except RuntimeError as error:  # what an operation needs to know of values, or a type that it lacks
            raise ValueError(
                f"A step of {shape.name} ({shape.config.model_type}) cannot be followed with "
                f"precision={settings.precision!r} without its values: {str(error).splitlines()[0]} Try another "
                "precision (bf16), or plan a dense model of the same sizes by hand (--params --layers --hidden --vocab)."
            ) from error
    return step.record()


class _Step:
    def __init__(
        self,
        shape: ModelShape,
        settings: PlanSettings,
        needs: Needs,
        tokens: int,
        response: int,
        memory: float,
        gpu: bool,
    ) -> None:
        self.shape, self.settings, self.needs, self.tokens, self.response = shape, settings, needs, tokens, response
        self.memory, self.on_gpu = memory, gpu
        self.ledger = Ledger()
        self.trainable = self.mask_parameters = self.weights = self.reference_bytes = self.trainable_bytes = 0

    def meta_models(self) -> tuple[nn.Module, nn.Module | None, LearnedMask | None]:
        """Policy, reference of its own and mask, on the meta device."""
        settings = self.settings
        policy = meta_model(self.shape.config, settings.weight_dtype, settings.attention)
        reference = None
        if self.needs.loads_reference:
            reference = meta_model(self.shape.config, settings.weight_dtype, settings.attention)
            reference.eval().requires_grad_(False)
        if settings.load_in_4bit:
            policy = with_four_bits(policy, settings.double_quant)
        if settings.lora:
            policy = with_adapters(policy, settings)
        if settings.load_in_4bit:
            adapters_in_half(policy)
        if settings.checkpointing:
            backbone: Any = policy
            backbone.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
            if settings.lora:
                backbone.enable_input_require_grads()
        mask = None
        if self.needs.states:
            sharing = "independent" if settings.independent else "common"
            all_layers = settings.mask_layers == "all"
            with torch.device("meta"):
                text = self.shape.config.get_text_config()
                mask = LearnedMask(
                    text.hidden_size,
                    text.num_hidden_layers,
                    sharing=sharing,
                    map=MASK_MAP if all_layers else "linear",
                    layers=settings.mask_layers,
                )
        return policy.train(), reference, mask

    def materialise(self, policy: nn.Module, reference: nn.Module | None, mask: LearnedMask | None) -> None:
        """Fake weights, gradients and optimiser states."""
        ledger = self.ledger
        with ledger.part("weights"):
            self.policy = fake(policy)
        self.weights, self.scales = bytes_of(self.policy.parameters()), bytes_of(scales_in(self.policy))
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.trainable, self.trainable_bytes = sum(p.numel() for p in trained), bytes_of(trained)
        with ledger.part("reference"):
            self.reference = None if reference is None else fake(reference)
        self.reference_bytes = 0 if self.reference is None else bytes_of(self.reference.parameters())
        with ledger.part("mask"):
            self.mask = None if mask is None else fake(mask)
        self.mask_parameters = 0 if mask is None else sum(p.numel() for p in mask.parameters())
        self.states = []
        own = [] if self.mask is None else list(self.mask.parameters())
        with ledger.part("optimizer"):
            self.states = [optimizer_state(p, self.settings.optimizer) for p in [*trained, *own]]
        for parameter in [*trained, *own]:
            if self.settings.accumulation > 1:  # what earlier micro-batches have left
                with ledger.part("gradients"):
                    parameter.grad = torch.empty_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._gradient_made)

    def _gradient_made(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.ledger.enter(parameter.grad, "gradients")

    def run(self) -> None:
        """Forward and backward of a micro-batch."""
        ledger, rows = self.ledger, 2 * self.settings.batch_size
        with ledger.part("batch"):
            ids = torch.zeros(rows, self.tokens, dtype=torch.long)
            attention = torch.ones_like(ids) if self.settings.padded else None
        head = output_embeddings(self.policy)
        ledger.phase("reference")
        states: list[Tensor] | None = None
        last: Tensor | None = None
        reference_weight: Tensor | None = None
        with ledger.part("states"):
            if self.needs.reference and not self.settings.precompute_ref:
                model = self.policy if self.reference is None else self.reference
                states, last = self._reference(model, ids, attention)
                reference_weight = output_embeddings(model).weight
            elif self.needs.reference:
                states, last = self._from_cache(rows)
        count = rows * self.response
        index = (torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long))
        loss = torch.zeros(())
        with self._autocast():
            ledger.phase("mask")
            if self.mask is not None and states is not None:
                with ledger.part("mask"):
                    values = self.mask.mixed_values(states, index)
                    loss = loss + sum(value.sum() for value in values)
            ledger.phase("policy")
            hidden = base_of(self.policy).base_model(**forward_arguments(ids, attention)).last_hidden_state
            ledger.phase("scoring")
            loss = loss + self._score(hidden, last, head, reference_weight, index)
        del hidden
        ledger.phase("backward")
        loss.backward()

    def _score(
        self, hidden: Tensor, last: Tensor | None, head: nn.Module, reference_weight: Any, index: tuple[Tensor, Tensor]
    ) -> Tensor:
        settings, needs = self.settings, self.needs
        self.scorer = ScorerShape(
            [2 * self.response] * settings.batch_size,
            needs.reference,
            needs.kl,
            needs.direction,
            half=torch.bfloat16 if settings.autocast and self.on_gpu else None,
            cached=settings.precompute_ref and needs.reference,
            on_gpu=self.on_gpu,
            device_bytes=self.memory,
            budget_mib=settings.scorer_memory_mib,
        )
        kept = hidden[:, :-1][index]
        reference = None if last is None or self.scorer.cached else last[:, :-1][index]
        weight = None if reference is None else reference_weight
        loss: Tensor = ScorerStandIn.apply(kept, head.weight, reference, weight, self.scorer, self.ledger)
        return loss

    def _reference(self, model: nn.Module, ids: Tensor, attention: Tensor | None) -> tuple[list[Tensor] | None, Tensor]:
        """States of all blocks where a mask reads them, and the last hidden states."""
        training = model.training
        model.eval()
        disabled = model.disable_adapter() if self.settings.lora else nullcontext()  # type: ignore[operator]
        with torch.no_grad(), self._autocast(), disabled:
            out = base_of(model).base_model(**forward_arguments(ids, attention), output_hidden_states=self.needs.states)
        model.train(training)
        if not self.needs.states:
            return None, out.last_hidden_state
        blocks = list(out.hidden_states[1:])
        blocks[-1] = out.last_hidden_state
        return blocks, out.last_hidden_state

    def _from_cache(self, rows: int) -> tuple[list[Tensor] | None, Tensor | None]:
        """What a reference cache gives a batch: states at (rows, S), and for the KL two vectors a token."""
        text, dtype = self.shape.config.get_text_config(), dtype_of(self.settings.weight_dtype)
        self.cached = []
        if self.needs.kl:
            size = (rows, self.tokens - 1, self.shape.hidden_size)
            self.cached = [torch.empty(size, dtype=dtype)]
            if self.settings.lora:
                self.cached.append(torch.empty(size, dtype=torch.float32))
        if not self.needs.states:
            return None, None
        whole = torch.empty(rows, self.tokens, text.num_hidden_layers, text.hidden_size, dtype=dtype)
        return list(whole.unbind(2)), None

    def _autocast(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.settings.autocast else nullcontext()

    def record(self) -> StepRecord:
        """What was followed."""
        ledger = self.ledger
        flops = dict(ledger.flops)
        flops["head"] = products_of(self.scorer, self.shape.hidden_size, self.shape.vocabulary, not self.settings.lora)
        return StepRecord(
            dict(ledger.peak),
            ledger.peak_phase,
            dict(ledger.phases),
            flops,
            dict(ledger.operations),
            dict(ledger.traffic),
            self.scorer.rows,
            self.trainable,
            self.mask_parameters,
            self.weights,
            self.reference_bytes,
            self.trainable_bytes,
            self.scales,
        )
