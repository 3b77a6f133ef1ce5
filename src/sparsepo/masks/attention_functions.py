"""Watching what attention functions are called with: no module outputs the rotated queries and keys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any

from torch import Tensor, nn

# Called with an attention module and its queries, keys and, but for Falcon's, values, (B, heads, S, D) each
Saw = Callable[[nn.Module, Sequence[Tensor]], None]


def watch_attention(stack: ExitStack, modules: Sequence[nn.Module], saw: Saw, inline_rotary: bool) -> None:
    """Until the stack ends, report what attention gets in ``modules``, by each way that transformers has.

    Args:
        stack: puts everything back when it ends.
        modules: the attention modules.
        saw: called once for each attention.
        inline_rotary: attention is inline code (Falcon): take what its rotary function returns.
    """
    _wrap_interface(stack, saw)
    for module in modules:
        _wrap_method(stack, module, saw)
    if inline_rotary:
        _wrap_rotary(stack, modules, saw)


def enter(stack: ExitStack, handle: Any) -> None:
    """A hook that goes when the stack ends."""
    stack.callback(handle.remove)


def _patch(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack ends, when what the owner itself had is put back."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    stack.callback(lambda: delattr(owner, name) if before is missing else setattr(owner, name, before))


def _wrap_interface(stack: ExitStack, saw: Saw) -> None:
    """transformers' registry of attention functions, called as f(module, query, key, value, …)."""
    registry = getattr(sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", None)
    if registry is None or not hasattr(registry, "get_interface"):
        return
    get = registry.get_interface

    def get_interface(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        function = get(*args, **kwargs)

        @wraps(function)
        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Any:
            saw(module, (query, key, value))
            return function(module, query, key, value, *rest, **settings)

        return attend

    _patch(stack, registry, "get_interface", get_interface)


def _wrap_method(stack: ExitStack, module: nn.Module, saw: Saw) -> None:
    """GPT-J, CodeGen, GPT-Neo: attention is the module's own ``_attn(query, key, value, …)``."""
    method = getattr(module, "_attn", None)
    if method is None:
        return

    @wraps(method)
    def attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Any:
        saw(module, (query, key, value))
        return method(query, key, value, *rest, **settings)

    _patch(stack, module, "_attn", attend)


def _wrap_rotary(stack: ExitStack, modules: Sequence[nn.Module], saw: Saw) -> None:
    """Falcon attends inline: what its rotary function returns is taken, for the module that is running."""
    namespace = sys.modules[type(modules[0]).__module__]
    rotate = getattr(namespace, "apply_rotary_pos_emb", None)
    if rotate is None:
        return
    running: list[nn.Module] = []
    for module in modules:
        enter(stack, module.register_forward_pre_hook(lambda m, _: running.append(m)))
        enter(stack, module.register_forward_hook(lambda _, __, ___: running.clear()))

    @wraps(rotate)
    def rotated(*args: Any, **kwargs: Any) -> Any:
        pair = rotate(*args, **kwargs)
        if running:
            saw(running[-1], pair)
        return pair

    _patch(stack, namespace, "apply_rotary_pos_emb", rotated)
