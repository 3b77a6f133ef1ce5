"""Learned masks: small heads on the reference's hidden states (SparsePO, arXiv 2410.05102; the official ``simple_*``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .base import Masker, MaskInputs, NoiseKey, TokenMasks
from .gates import build_gate
from .head import Dropper, MaskHead
from .projection import Index, project
from .responses import Responses
from .sizes import model_sizes
from .validation import check_choice, check_fraction, check_int, check_positive_int

SHARING = ("common", "independent")
_SLOPES = {"relu": 0.0, "leaky": 0.1, "none": 1.0}  # of the layers' activation below zero
INITS = ("published", "ones", "mapo")
MAP_WIDTHS = {"two_layer": 200, "mlp": 16}  # maps with an inner layer, and its width unless one is set
MAPS = ("linear", *MAP_WIDTHS)
_DROPOUT_STREAM = 1_000  # first noise stream of mask dropout; head k, layer l uses the (k (L + 1) + l)-th after it
_GATE_STREAM = 900  # of a stochastic gate; head k uses the k-th after it
_OBSERVER_STREAM = 899  # of the choice of tokens that a controller looks at


class GateOutput(NamedTuple):
    """A head's mask at N tokens, what an L1 weight counts there (None: the mask), and its number before the gate, (N,)."""

    mask: Tensor
    size: Tensor | None
    value: Tensor


class LearnedMask(Masker):
    """Masks from the hidden states of all blocks of the frozen reference, by one head or two.

        a_l = ReLU(w_l · LN(h_l) + b_l)        m = gate(Σ_l v_l a_l)

    With the paper's gate, ReLU, zeros are exact. Everything is computed in float32 (float64 if the parameters are), also
    under autocast and from half-precision states; no gradient reaches the states. The defaults are the paper's;
    :class:`SparsePOConfig` starts from ones.

    Args:
        hidden_size: width H of the reference's block outputs.
        num_layers: number of blocks of the reference.
        sharing: ``common``: one head, m_u = m_d; ``independent``: one head each. Of no effect where ``mask_on`` leaves
            one mask only.
        mask_on: ``both``, ``reward`` (m_d = 1) or ``kl`` (m_u = 1).
        position: read at the ``predicting`` position t−1 (the paper's) or at the ``token`` itself.
        init: ``published``: Hugging Face's initialisation, weights N(0, 0.02), biases 0: masks near zero. ``ones``:
            weights N(0, 0.02), layer biases 1, mixer 1/L: masks near one (without LayerNorm, ``layers="last"``, weights
            N(0, 0.02/√H)). ``mapo``: as ``ones``; to be fitted by :func:`fit_to_targets`.
        layers: ``all``, or ``last``: the last block's state only, without LayerNorm and mixer, as published.
        map: ``linear``: H → 1; ``two_layer``: H → ``map_width`` → 1 without activation between, as published; ``mlp``:
            the same with GELU between, inner weights from N(0, 1/√H), so that it can tell tokens apart that no linear
            map parts.
        map_width: inner width of ``two_layer`` (None: 200, as published) and ``mlp`` (None: 16).
        dropout: rate on a_l and on m, in training mode only.
        norm_eps: of the LayerNorm.
        activation: of the layers: ``relu`` (the paper's); ``leaky``, slope 0.1 below zero: a token whose layers are all
            shut still has a number and a gradient of its own; ``none``: neither ReLU nor gate, signed masks, for study.
        seed: of the initialisation; the global generator is neither read nor moved.
        gate: ``relu`` (the paper's) or another of :data:`sparsepo.masks.gates.GATES`.
        gate_temperature: of ``sigmoid``, ``binary``, ``hard_concrete``, ``gumbel_sigmoid``, ``sparsemax`` and ``entmax``.
        topk_share: of ``topk``: share of a response's tokens that are kept.

    Parameters are ``heads.shared.*`` (common), ``heads.reward.*`` and ``heads.kl.*`` (independent, or whichever
    ``mask_on`` leaves); see :class:`MaskHead` for their names and shapes.
    """

    kind = "learned"
    needs_hidden_states = True
    later_settings = ("gate", "gate_temperature", "topk_share")

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        sharing: str = "common",
        mask_on: str = "both",
        position: str = "predicting",
        init: str = "published",
        layers: str = "all",
        map: str = "linear",
        map_width: int | None = None,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        activation: str = "relu",
        seed: int = 0,
        gate: str = "relu",
        gate_temperature: float | None = None,
        topk_share: float | None = None,
    ) -> None:
        super().__init__(mask_on, position)
        check_positive_int("hidden_size", hidden_size)
        check_positive_int("num_layers", num_layers)
        map_width = MAP_WIDTHS.get(map, 200) if map_width is None else map_width
        check_positive_int("map_width", map_width)
        check_choice("sharing", sharing, SHARING)
        check_choice("init", init, INITS)
        check_choice("layers", layers, ("all", "last"))
        check_choice("map", map, MAPS)
        check_choice("activation", activation, tuple(_SLOPES))
        check_fraction("dropout", dropout)
        if not isinstance(norm_eps, float) or not 0 < norm_eps < 1:
            raise ValueError(f"norm_eps={norm_eps!r} must be a number between 0 and 1.")
        check_int("seed", seed)
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.sharing, self.layers, self.map, self.map_width = sharing, layers, map, map_width
        self.init, self.dropout, self.norm_eps = init, float(dropout), norm_eps
        self.activation, self.seed = activation, seed
        self.gate = build_gate(gate, gate_temperature, topk_share)
        if activation == "none" and gate != "relu":
            raise ValueError(
                f"gate={gate!r} has no effect with activation='none', whose masks are signed; leave it 'relu'."
            )
        self.flat_at_zero = activation != "none" and self.gate.flat_at_zero
        # set by the trainer's mask control: shown the states and index of every batch, with a number in [0, 1) a token
        self.observer: Callable[[list[Tensor], Index, Tensor | None], None] | None = None
        self.shows_values = False  # set by the trainer where the heads are fitted to the policy's log-ratios
        self.heads = nn.ModuleDict({name: self._new_head() for name in self._head_names()})
        self.reset_parameters()

    def _head_names(self) -> tuple[str, ...]:
        if self.mask_on != "both":
            return (self.mask_on,)
        return ("shared",) if self.sharing == "common" else ("reward", "kl")

    def _new_head(self) -> MaskHead:
        return MaskHead(
            self.hidden_size,
            self.layers_read,
            normalised=self.layers == "all",
            width=self.map_width if self.map in MAP_WIDTHS else None,
            gelu=self.map == "mlp",
            norm_eps=self.norm_eps,
            slope=_SLOPES[self.activation],
        )

    @classmethod
    def for_model(cls, model: nn.Module, **settings: Any) -> LearnedMask:
        """A learned mask of the sizes of ``model``, a Hugging Face causal LM."""
        return cls(*model_sizes(model), **settings)

    @property
    def layers_read(self) -> int:
        """L of the head: all blocks, or 1."""
        return self.num_layers if self.layers == "all" else 1

    def reset_parameters(self) -> None:
        """Back to the start that ``init`` and ``seed`` name."""
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        for head in self.mask_heads():
            head.initialise(self.init != "published", generator)

    def mask_heads(self) -> list[MaskHead]:
        """The heads: shared, or reward then KL."""
        return [head for head in self.heads.values() if isinstance(head, MaskHead)]

    def forward(self, hidden_states: Tensor | Sequence[Tensor]) -> TokenMasks:
        """Masks of B × T tokens from the states at their reading positions.

        Args:
            hidden_states: (L, B, T, H), or L tensors (B, T, H): outputs of the blocks, the last after the final norm.

        Returns:
            reward and KL masks, (B, T) each; with dropout in training mode, from torch's generator.
        """
        states = self._checked_states(hidden_states)
        everywhere = torch.ones(states[0].shape[:-1], dtype=torch.bool, device=states[0].device)
        masks = self._scattered(states, everywhere, 0, None)
        return TokenMasks(masks.reward, masks.kl)

    def raw_masks(self, inputs: MaskInputs) -> tuple[Tensor, Tensor]:
        """(m_u, m_d), computed at response tokens and zero elsewhere, (B, T) each."""
        masks = self.token_masks(inputs)
        return masks.reward, masks.kl

    def token_masks(self, inputs: MaskInputs) -> TokenMasks:
        """The masks of a batch, and what an L1 weight counts where that is not the masks."""
        if inputs.hidden_states is None:
            raise ValueError("A learned mask needs hidden_states: run the reference with output_hidden_states=True.")
        states = self._checked_states(inputs.hidden_states)
        rows, targets = inputs.response_mask.shape
        if states[0].shape[:2] != (rows, targets + 1):
            raise ValueError(
                f"hidden states cover {tuple(states[0].shape[:2])} positions, but response_mask {(rows, targets)} asks for "
                f"{(rows, targets + 1)}: those of the whole sequence."
            )
        return self._scattered(states, inputs.response_mask, int(self.position == "token"), inputs.noise)

    def _scattered(self, states: list[Tensor], keep: Tensor, offset: int, noise: NoiseKey | None) -> TokenMasks:
        rows, columns = keep.nonzero(as_tuple=True)
        index = rows, columns + offset
        if self.observer is not None:
            self.observer(states, index, None if noise is None else noise.uniform(_OBSERVER_STREAM)[keep])
        values = self.compact_masks(states, index, self._uniform(keep, noise))

        def scatter(value: Tensor) -> Tensor:
            # masked_scatter keeps the graph alive where nothing is kept: zero gradients, not None
            return value.new_zeros(keep.shape).masked_scatter(keep, value)

        masks = [scatter(value.mask) for value in values]
        sizes = [None if value.size is None else scatter(value.size) for value in values]
        shown = None
        if self.shows_values:
            shown = {name: scatter(value.value) for name, value in zip(self.heads, values, strict=True)}
        ones = keep.to(masks[0].dtype)
        if self.mask_on == "reward":
            return TokenMasks(masks[0], ones, sizes[0], values=shown)
        if self.mask_on == "kl":
            return TokenMasks(ones, masks[0], None, sizes[0], values=shown)
        return TokenMasks(masks[0], masks[-1], sizes[0], sizes[-1], shown)

    def mixed_values(
        self, states: Sequence[Tensor], index: Index, uniform: Callable[[int], Tensor] | None = None
    ) -> list[Tensor]:
        """Each head's Σ_l v_l a_l at N tokens, before offset, scale and gate, (N,) each; see :meth:`compact_masks`."""
        heads = self.mask_heads()
        with torch.autocast(states[0].device.type, enabled=False):
            dtype = torch.promote_types(heads[0].layer_weight.dtype, torch.float32)
            eps = self.norm_eps if self.layers == "all" else None
            weights = [head.projections(dtype) for head in heads]
            # one pass over the states serves both heads: normalising does not depend on the head
            parts = project(states, index, torch.cat(weights, dim=1), eps).split([w.shape[1] for w in weights], dim=2)
            return [
                head.mixed(head.layer_values(part), self._dropper(k, uniform))
                for k, (head, part) in enumerate(zip(heads, parts, strict=True))
            ]

    def compact_masks(
        self, states: Sequence[Tensor], index: Index, uniform: Callable[[int], Tensor] | None = None
    ) -> list[GateOutput]:
        """The mask of each head at N tokens.

        Args:
            states: the ``layers_read`` layers' states, (B, S, H) each.
            index: rows (ascending) and columns of the tokens, (N,) each.
            uniform: stream → numbers in [0, 1), (N,), for dropout and stochastic gates; None: evaluation.

        Returns:
            one a head.
        """
        mixed = self.mixed_values(states, index, uniform)
        with torch.autocast(states[0].device.type, enabled=False):
            return [
                self._gated(k, head, value, Responses(index[0]), uniform)
                for k, (head, value) in enumerate(zip(self.mask_heads(), mixed, strict=True))
            ]

    def _gated(
        self,
        number: int,
        head: MaskHead,
        mixed: Tensor,
        responses: Responses,
        uniform: Callable[[int], Tensor] | None,
    ) -> GateOutput:
        x = head.shifted(mixed)
        drop = self._dropper(number, uniform)
        if self.activation == "none":
            return GateOutput(x if drop is None else drop(self.layers_read, x), None, mixed)
        noise = uniform(_GATE_STREAM + number) if uniform is not None and self.gate.stochastic else None
        mask = self.gate(x, responses, noise)
        return GateOutput(mask if drop is None else drop(self.layers_read, mask), self.gate.size(x), mixed)

    def _uniform(self, keep: Tensor, noise: NoiseKey | None) -> Callable[[int], Tensor] | None:
        if not self.training or (self.dropout == 0 and not self.gate.stochastic):
            return None
        if noise is not None:
            return lambda stream: noise.uniform(stream)[keep]
        count = int(keep.sum())
        return lambda stream: torch.rand(count, device=keep.device)

    def _dropper(self, head: int, uniform: Callable[[int], Tensor] | None) -> Dropper | None:
        if uniform is None or self.dropout == 0:
            return None
        first = _DROPOUT_STREAM + head * (self.layers_read + 1)

        def drop(layer: int, value: Tensor) -> Tensor:
            kept = uniform(first + layer) >= self.dropout
            return value * kept / (1 - self.dropout)

        return drop

    def _checked_states(self, hidden_states: Tensor | Sequence[Tensor]) -> list[Tensor]:
        states = list(hidden_states)
        if len(states) not in {self.num_layers, self.layers_read}:
            raise ValueError(
                f"{len(states)} layers of hidden states given, but the mask has num_layers={self.num_layers}; leave the "
                "embedding output out (hidden_states[1:])."
            )
        states = states[-self.layers_read :]
        for number, state in enumerate(states):
            if state.dim() != 3 or state.shape[-1] != self.hidden_size:
                raise ValueError(
                    f"hidden states of layer {number} have shape {tuple(state.shape)}, expected (rows, tokens, "
                    f"hidden_size={self.hidden_size})."
                )
        return states

    def check_fits(self, model: nn.Module) -> None:
        """Raise ``ValueError`` naming the sizes if they are not those of ``model``."""
        sizes = model_sizes(model)
        for name, ours, theirs in (
            ("hidden_size", self.hidden_size, sizes.hidden_size),
            ("num_layers", self.num_layers, sizes.num_layers),
        ):
            if ours != theirs:
                raise ValueError(
                    f"The learned mask has {name}={ours}, but {type(model).__name__} has {theirs}; "
                    "a mask belongs to the reference model that it was trained on."
                )

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this mask."""
        names = ("hidden_size", "num_layers", "sharing", "mask_on", "position", "init", "layers", "map", "map_width")
        own = {name: getattr(self, name) for name in (*names, "dropout", "norm_eps", "activation", "seed")}
        return own | self.gate.settings()
