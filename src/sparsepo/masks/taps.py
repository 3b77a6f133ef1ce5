"""Hooks that reduce a model's activations to their feature means while its forward runs.

Sites, named ``group.site.layer``:

- ``attn``: ``q``, ``k``, ``v`` as projected; ``q_rotated``, ``k_rotated`` as attention gets them where positions are
  rotated; ``out``, the attention's output before its output projection.
- ``mlp``: ``act``, the input of the down-projection: the activation, in a gated MLP times the gate's other half; for a
  mixture of experts the block's output, since experts see routed tokens.
- ``resid``: ``embeddings`` and ``final`` (after the last norm) once; in each block the output of every norm (``norm0`` …),
  ``after_attn``, ``mlp`` (the MLP's output; Bloom's and MPT's add the stream in there), ``block`` (the block's output),
  ``mixer`` (a state-space block's output). ``after_attn`` is the residual stream
  between attention and MLP; where the two run in parallel (no such point) it is the attention's output, as the official
  code has it for GPT-NeoX.
- ``logits``: their mean over the vocabulary.

Nothing is kept but (B, S) numbers a site; hooks go when the context ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .attention_functions import enter, watch_attention
from .features import head_means, split_fused, token_means
from .layout import AttentionSites, BlockSites, ModelLayout, find_layout
from .logits import mean_logits


@contextmanager
def record_sites(
    model: nn.Module, groups: Sequence[str], done: Callable[[dict[str, Tensor]], None] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Context around a model's forward that records the feature means of its activations.

    Args:
        model: a Hugging Face causal LM; a PEFT model's base is tapped, so with adapters disabled that is the reference.
        groups: of ``mlp``, ``attn``, ``resid``, ``logits``.
        done: called with the sites at the end of each forward of the backbone.

    Yields:
        name of the site → (B, S) float32, filled while the forward runs; a further forward starts it afresh.

    Raises:
        ValueError: a group without any activation in this architecture, or an activation of unknown shape.
    """
    layout = require_groups(model, groups)
    recorder = Recorder(layout, groups, done)
    with ExitStack() as stack:
        recorder.install(stack)
        try:
            yield recorder.sites
        finally:
            recorder.forget()


def require_groups(model: nn.Module, groups: Sequence[str]) -> ModelLayout:
    """The layout of ``model``, which has activations of all ``groups``; otherwise ``ValueError`` names the empty ones."""
    layout = find_layout(model)
    empty = [group for group in groups if group not in layout.groups]
    if empty:
        raise ValueError(
            f"groups={list(groups)!r}: a {layout.model_type!r} model has no activations of {', '.join(empty)}; it has "
            f"{', '.join(layout.groups)}. Set groups=[{', '.join(repr(g) for g in groups if g in layout.groups)}]."
        )
    return layout


class Recorder:
    """The hooks of one context and what they found."""

    def __init__(
        self, layout: ModelLayout, groups: Sequence[str], done: Callable[[dict[str, Tensor]], None] | None = None
    ) -> None:
        self.layout = layout
        self.done = done
        self.groups = set(groups)
        self.sites: dict[str, Tensor] = {}
        self.shape = (0, 0)
        # tensors of the block that is running, to tell its residual stream from its branches
        self.block_input: Tensor | None = None
        self.attention_output: Tensor | None = None
        self.norm_outputs: list[Tensor] = []
        self.mlp_has_run = False

    def forget(self) -> None:
        """Let go of the tensors of a block."""
        self.block_input = self.attention_output = None
        self.norm_outputs = []
        self.mlp_has_run = False

    def install(self, stack: ExitStack) -> None:
        """Register all hooks; the stack takes them away."""
        backbone = self.layout.backbone
        enter(stack, backbone.register_forward_pre_hook(self._start, with_kwargs=True))
        for number, block in enumerate(self.layout.blocks):
            if "resid" in self.groups:
                self._tap_stream(stack, number, block)
            if "mlp" in self.groups:
                self._tap_mlp(stack, number, block)
            if "attn" in self.groups and block.attention is not None:
                self._tap_attention(stack, number, block.attention)
        if "attn" in self.groups:
            self._tap_attention_functions(stack)
        enter(stack, backbone.register_forward_hook(self._finish))

    # whole model

    def _start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.sites.clear()
        self.forget()
        inputs = args[0] if args else None
        for name in ("input_ids", "inputs_embeds"):
            inputs = kwargs.get(name) if inputs is None else inputs
        if inputs is None:
            raise ValueError("Activation masks need the backbone's input_ids or inputs_embeds.")
        self.shape = (int(inputs.shape[0]), int(inputs.shape[1]))

    def _finish(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        last = output["last_hidden_state"] if isinstance(output, dict) else output[0]
        if "resid" in self.groups:
            self._record("resid.final", last)
        if "logits" in self.groups:
            head = self.layout.head
            assert head is not None
            self.sites["logits"] = mean_logits(last, head, self.layout.config)
        if self.done is not None:
            self.done(self.sites)

    def _record(self, site: str, values: Any) -> None:
        self.sites[site] = token_means(values, self.shape, site)

    def _tap_output(self, stack: ExitStack, module: nn.Module, site: str) -> None:
        enter(stack, module.register_forward_hook(lambda _, __, output: self._record(site, output)))

    def _tap_input(self, stack: ExitStack, module: nn.Module, site: str) -> None:
        def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._record(site, args[0] if args else next(iter(kwargs.values())))

        enter(stack, module.register_forward_pre_hook(take, with_kwargs=True))

    # residual stream

    def _tap_stream(self, stack: ExitStack, number: int, block: BlockSites) -> None:
        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.forget()
            self.block_input = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                self._record("resid.embeddings", self.block_input)

        def end(_: nn.Module, __: Any, output: Any) -> None:
            site = f"resid.after_attn.{number}"
            if self.attention_output is not None and site not in self.sites:
                self._record(site, self.attention_output)
            self._record(f"resid.block.{number}", output)
            self.forget()

        def attention_ran(_: nn.Module, __: Any, output: Any) -> None:
            self.attention_output = output[0] if isinstance(output, (tuple, list)) else output

        def mlp_ran(_: nn.Module, __: Any, output: Any) -> None:
            self.mlp_has_run = True
            self._record(f"resid.mlp.{number}", output)

        enter(stack, block.module.register_forward_pre_hook(begin, with_kwargs=True))
        for which, norm in enumerate(block.norms):
            self._tap_norm(stack, norm, number, which)
        if block.attention is not None:
            enter(stack, block.attention.module.register_forward_hook(attention_ran))
        if block.mlp is not None:
            enter(stack, block.mlp.register_forward_pre_hook(lambda _, args: self._between(number, args)))
            enter(stack, block.mlp.register_forward_hook(mlp_ran))
        if block.mixer is not None:
            self._tap_output(stack, block.mixer, f"resid.mixer.{number}")
        enter(stack, block.module.register_forward_hook(end))

    def _tap_norm(self, stack: ExitStack, norm: nn.Module, number: int, which: int) -> None:
        def ran(_: nn.Module, __: Any, output: Any) -> None:
            self.norm_outputs.append(output)
            self._record(f"resid.norm{which}.{number}", output)

        enter(stack, norm.register_forward_pre_hook(lambda _, args: self._between(number, args)))
        enter(stack, norm.register_forward_hook(ran))

    def _between(self, number: int, args: tuple[Any, ...]) -> None:
        """Record what a norm or the MLP reads if that is the residual stream after attention and before the MLP."""
        site = f"resid.after_attn.{number}"
        if not args or self.attention_output is None or self.mlp_has_run or site in self.sites:
            return
        branches = (self.block_input, self.attention_output, *self.norm_outputs)
        is_branch = any(other is not None and _same(args[0], other) for other in branches)
        if not is_branch and args[0].shape[-1] == self.attention_output.shape[-1]:
            self._record(site, args[0])

    # MLP and attention

    def _tap_mlp(self, stack: ExitStack, number: int, block: BlockSites) -> None:
        site = f"mlp.act.{number}"
        if block.down is not None:
            self._tap_input(stack, block.down, site)
        elif block.mlp is not None:
            self._tap_output(stack, block.mlp, site)

    def _tap_attention(self, stack: ExitStack, number: int, attention: AttentionSites) -> None:
        def fused(_: nn.Module, __: Any, output: Tensor) -> None:
            parts = split_fused(output, self.layout.config)
            for name, part in zip("qkv", parts or (), strict=False):
                self._record(f"attn.{name}.{number}", part)

        for name, module in (("q", attention.query), ("k", attention.key), ("v", attention.value)):
            if module is not None:
                self._tap_output(stack, module, f"attn.{name}.{number}")
        if attention.fused is not None:
            enter(stack, attention.fused.register_forward_hook(fused))
        if attention.out is not None:
            self._tap_input(stack, attention.out, f"attn.out.{number}")

    def _tap_attention_functions(self, stack: ExitStack) -> None:
        """Queries and keys as attention gets them: no module outputs them, so functions are wrapped for a while."""
        layers = {id(b.attention.module): n for n, b in enumerate(self.layout.blocks) if b.attention is not None}
        rotates = self.layout.rotates

        def saw(module: nn.Module, parts: Sequence[Tensor]) -> None:
            number = layers.get(id(module))
            if number is None:
                return
            for name, part in zip("qkv", parts, strict=False):
                site = f"attn.{name}.{number}"
                if rotates and name != "v":
                    self.sites[f"attn.{name}_rotated.{number}"] = head_means(part, self.shape, site)
                elif site not in self.sites:  # fused in a layout of its own
                    self.sites[site] = head_means(part, self.shape, site)

        modules = [block.attention.module for block in self.layout.blocks if block.attention is not None]
        watch_attention(stack, modules, saw, inline_rotary=rotates and self.layout.model_type == "falcon")


def _same(a: Any, b: Tensor) -> bool:
    """Whether two tensors are one piece of memory, seen in any shape."""
    return isinstance(a, Tensor) and a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def group_sites(sites: dict[str, Tensor], groups: Sequence[str]) -> dict[str, list[Tensor]]:
    """Recorded sites by group."""
    return {group: [value for name, value in sites.items() if name.split(".")[0] == group] for group in groups}
