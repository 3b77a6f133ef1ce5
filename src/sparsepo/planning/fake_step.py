"""One training step on fake tensors: reference, mask, policy, scorer, backward, as training/step.py runs them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from sparsepo.masks import LearnedMask
from sparsepo.objectives import get_objective_class

from .ledger import Ledger, bytes_of, dtype_of
from .scorer_memory import ScorerShape, ScorerStandIn, products_of
from .settings import PlanSettings
from .shapes import ModelShape, meta_model

# How the learned mask's default head looks (training/settings.py): a hidden layer with GELU
MASK_MAP = "mlp"
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


@dataclass
class Needs:
    """What a run computes.

    Args:
        reference, kl, states: whether the reference, the KL and the states of all blocks are read.
        loads_reference: whether a model of its own is in memory.
        direction: the objective's ``has_fixed_direction``.
    """

    reference: bool
    kl: bool
    states: bool
    loads_reference: bool
    direction: bool = field(default=False)


def needs_of(settings: PlanSettings) -> Needs:
    """From objective and mask; as the trainer's defaults, a learned mask has a KL anchor."""
    kind = get_objective_class(settings.objective)
    anchor = 0.1 if settings.mask == "learned" and kind.reads_masks else 0.0
    arguments = {"beta": kind.default_beta, "kl_anchor": anchor}
    objective = kind(**arguments)
    runs = objective.needs_reference and not settings.precompute_ref
    return Needs(
        reference=objective.needs_reference,
        kl=objective.needs_kl,
        states=settings.mask == "learned" and kind.reads_masks,
        loads_reference=runs and not settings.lora,
        direction=objective.has_fixed_direction,
    )


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
            with FakeTensorMode(), step.ledger, _as_on_cuda(settings, on_gpu):
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
        if settings.lora:
            policy = _with_adapters(policy, settings)
        if settings.checkpointing:
            backbone: Any = policy
            backbone.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
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
            self.policy = _fake(policy)
        self.weights = bytes_of(self.policy.parameters())
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        self.trainable, self.trainable_bytes = sum(p.numel() for p in trained), bytes_of(trained)
        with ledger.part("reference"):
            self.reference = None if reference is None else _fake(reference)
        self.reference_bytes = 0 if self.reference is None else bytes_of(self.reference.parameters())
        with ledger.part("mask"):
            self.mask = None if mask is None else _fake(mask)
        self.mask_parameters = 0 if mask is None else sum(p.numel() for p in mask.parameters())
        self.states = []
        own = [] if self.mask is None else list(self.mask.parameters())
        with ledger.part("optimizer"):
            self.states = [_optimizer_state(p, self.settings.optimizer) for p in [*trained, *own]]
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
        head = _output_embeddings(self.policy)
        ledger.phase("reference")
        states: list[Tensor] | None = None
        last: Tensor | None = None
        reference_weight: Tensor | None = None
        with ledger.part("states"):
            if self.needs.reference and not self.settings.precompute_ref:
                model = self.policy if self.reference is None else self.reference
                states, last = self._reference(model, ids, attention)
                reference_weight = _output_embeddings(model).weight
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
            hidden = _base(self.policy).base_model(**_arguments(ids, attention)).last_hidden_state
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
            out = _base(model).base_model(**_arguments(ids, attention), output_hidden_states=self.needs.states)
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
        )


@contextmanager
def _as_on_cuda(settings: PlanSettings, on_gpu: bool) -> Iterator[None]:
    """Two things that CUDA does otherwise than a CPU: mixed precision computes layer norms in float32, and attention has
    kernels of its own, which save other tensors. And on both: rows are not packed, which transformers asks of values."""
    from transformers import masking_utils

    plain = nn.functional.layer_norm

    def in_float32(*args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return plain(*args, **kwargs)

        def wide(value: Any) -> Any:
            return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value

        return plain(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})

    unpacked = patch.object(masking_utils, "find_packed_sequence_indices", lambda *_: None)
    if not on_gpu:
        with unpacked:
            yield
        return
    with (
        unpacked,
        patch.object(nn.functional, "layer_norm", in_float32) if settings.autocast else nullcontext(),
        patch.object(nn.functional, "scaled_dot_product_attention", _cuda_attention),
    ):
        yield


def _cuda_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Flash attention for half precision without a mask of its own, else memory-efficient attention, as PyTorch chooses."""
    half = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value = (tensor.to(half) for tensor in (query, key, value))
    out: Tensor
    if attn_mask is None and half != torch.float32:
        out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, False, scale=scale)[
            0
        ]
        return out
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    bias = attn_mask
    if bias is not None:
        bias = torch.zeros_like(bias, dtype=half) if bias.dtype == torch.bool else bias.to(half)
        bias = bias.expand(*query.shape[:2], *bias.shape[-2:])
    out = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, is_causal, scale=scale
    )[0]
    return out


def _with_adapters(model: nn.Module, settings: PlanSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = list(settings.lora_targets) if isinstance(settings.lora_targets, tuple) else settings.lora_targets
    config = LoraConfig(
        r=settings.lora_r, lora_alpha=2 * settings.lora_r, target_modules=targets, task_type="CAUSAL_LM"
    )
    with torch.device("meta"):
        adapted: Any = get_peft_model(model, config)
    return adapted


def _fake(module: Any) -> Any:
    """Replace meta tensors by fake ones on the CPU, shared ones by the same one. Call it inside a fake mode."""
    made: dict[int, Tensor] = {}

    def faked(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    keep = []
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    keep.append(tensor)  # no identity is used twice
                    store[name] = faked(tensor)
    return module


def _optimizer_state(parameter: Tensor, optimizer: str) -> list[Tensor]:
    if optimizer == "sgd":
        return []
    dtype = torch.uint8 if optimizer == "adamw_8bit" and parameter.numel() >= 4096 else parameter.dtype
    return [torch.empty(parameter.shape, dtype=dtype) for _ in range(2)]


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _output_embeddings(model: Any) -> Any:
    return _base(model).get_output_embeddings()


def _arguments(ids: Tensor, attention: Tensor | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    return arguments if attention is None else arguments | {"attention_mask": attention}
