"""Mask weights of the official release (``simple_all``) as a :class:`LearnedMask`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .learned import LearnedMask

# the official names of the heads, with and without "_mask", and ours
_HEADS = {"common": "shared", "rw": "reward", "kl": "kl"}
_KEY = re.compile(
    r"^(?:.*\.)?(?P<head>common|rw|kl)(?:_mask)?\."
    r"(?P<name>layer_norm\.(?:weight|bias)|w_per_layer\.\d+\.w\.(?:weight|bias)|mixer\.weight)$"
)


def import_published_mask(
    source: str | os.PathLike[str] | Mapping[str, Tensor], position: str = "predicting", **settings: Any
) -> LearnedMask:
    """Read a mask of the official SparsePO code.

    Args:
        source: its checkpoint's folder or safetensors file, or a state dict. Of interest are keys that end in
            ``common_mask.layer_norm.weight``, ``common_mask.w_per_layer.{l}.w.weight`` (and ``.bias``),
            ``common_mask.mixer.weight``, or the same under ``rw_mask`` and ``kl_mask``.
        position: of reading; the official code's is ``predicting``.
        settings: further settings of :class:`LearnedMask` that shapes do not tell (``dropout``, ``activation``, …).

    Returns:
        a common mask, independent masks, or with only one of ``rw_mask`` and ``kl_mask`` a mask on that side only.

    Raises:
        ValueError: no such keys, an incomplete head, both kinds at once, or sizes that disagree.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in _tensors(source).items():
        match = _KEY.match(key)
        assert match is not None
        head = found.setdefault(_HEADS[match["head"]], {})
        if match["name"] in head:
            raise ValueError(
                f"Two tensors are {match['head']}_mask.{match['name']}, one of them {key!r}; pass one mask only."
            )
        head[match["name"]] = value
    if not found:
        raise ValueError(
            "No published mask there: no key ends in common_mask.*, rw_mask.* or kl_mask.* with layer_norm, w_per_layer "
            "and mixer (the official 'simple_all' mask)."
        )
    if "shared" in found and len(found) > 1:
        raise ValueError("Both a common_mask and rw_mask / kl_mask are there; pass the keys of one kind only.")
    heads = {name: _head(name, tensors) for name, tensors in found.items()}
    sizes = {tuple(head["layer_weight"].shape) for head in heads.values()}
    if len(sizes) > 1:
        raise ValueError(f"rw_mask and kl_mask differ in (layers, hidden size): {sorted(sizes)}.")
    layers, hidden = sizes.pop()
    mask = LearnedMask(
        hidden,
        layers,
        sharing="common" if "shared" in heads else "independent",
        mask_on="both" if "shared" in heads or len(heads) == 2 else next(iter(heads)),
        position=position,
        init="published",
        **settings,
    )
    state = {f"heads.{head}.{name}": value for head, tensors in heads.items() for name, value in tensors.items()}
    mask.load_state_dict(state)
    return mask


def _head(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One head's tensors under our names and shapes."""
    official = next(theirs for theirs, ours in _HEADS.items() if ours == name) + "_mask"
    layers = len({key.split(".")[1] for key in tensors if key.startswith("w_per_layer.")})
    wanted = ["layer_norm.weight", "layer_norm.bias", "mixer.weight"]
    wanted += [f"w_per_layer.{layer}.w.{part}" for layer in range(max(layers, 1)) for part in ("weight", "bias")]
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise ValueError(f"The published mask lacks {official}.{missing[0]}.")
    hidden = tensors["layer_norm.weight"].numel()
    sizes = {"layer_norm": hidden, "mixer": layers, "weight": hidden, "bias": 1}
    for key in wanted:
        size = sizes["layer_norm"] if key.startswith("layer_norm") else sizes.get(key.split(".")[0], 0)
        size = size or sizes[key.rsplit(".", 1)[1]]
        if tensors[key].numel() != size:
            raise ValueError(f"{official}.{key} has {tensors[key].numel()} entries, expected {size}.")
        if not bool(torch.isfinite(tensors[key]).all()):
            raise ValueError(f"{official}.{key} holds values that are not finite.")

    def flat(key: str) -> Tensor:
        return tensors[key].detach().to("cpu", torch.float32).reshape(-1)

    return {
        "norm.weight": flat("layer_norm.weight"),
        "norm.bias": flat("layer_norm.bias"),
        "layer_weight": torch.stack([flat(f"w_per_layer.{layer}.w.weight") for layer in range(layers)]),
        "layer_bias": torch.cat([flat(f"w_per_layer.{layer}.w.bias") for layer in range(layers)]),
        "mixer_weight": flat("mixer.weight"),
    }


def _tensors(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mask's tensors only: the files hold the whole policy beside them."""
    if isinstance(source, Mapping):
        return {key: value for key, value in source.items() if _KEY.match(key)}
    path = Path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or files[0].suffix != ".safetensors" or not files[0].is_file():
        raise ValueError(
            f"No safetensors file at {path}. Pickled checkpoints (.bin, .pt) are not read: load them yourself, with "
            "torch.load(..., weights_only=True), and pass the state dict."
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys() if _KEY.match(key)}  # noqa: SIM118
    return tensors
