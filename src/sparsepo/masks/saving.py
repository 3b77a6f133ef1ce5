"""Masks on disk: ``mask/mask.json`` (what it is) and ``mask/mask.safetensors`` (its weights, if it has any).

No pickles; the JSON is checked strictly, since a mask that silently means something else would train or report nonsense.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .base import Masker
from .kinds import MASKS

FORMAT = 1
FOLDER, JSON_NAME, TENSORS_NAME = "mask", "mask.json", "mask.safetensors"
_LARGEST_JSON = 1 << 20  # characters
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "kind": str,
    "settings": dict,
    "base_model": (str, type(None)),
    "sparsepo_version": str,
}


def save_mask(
    mask: Masker,
    folder: str | os.PathLike[str],
    base_model: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``folder/mask/mask.json`` and, for a mask with parameters, ``folder/mask/mask.safetensors``.

    Each file appears whole or not at all.

    Args:
        mask: the mask.
        folder: usually that of the model.
        base_model: id or path of the reference model that the mask reads, kept as information.
        state_dict: weights gathered from shards; None: the mask's own.

    Returns:
        The folder written, ``folder/mask``.
    """
    from sparsepo import __version__

    state = mask.state_dict() if state_dict is None else state_dict
    tensors = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in state.items()}
    content = {
        "format": FORMAT,
        "kind": mask.kind,
        "settings": mask.settings(),
        "base_model": base_model,
        "sparsepo_version": __version__,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    target = Path(folder) / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    if tensors:
        partial = target / f"{TENSORS_NAME}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(target / TENSORS_NAME)
    partial = target / f"{JSON_NAME}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(target / JSON_NAME)
    if not tensors:  # an earlier mask's weights must not lie beside a mask that has none
        (target / TENSORS_NAME).unlink(missing_ok=True)
    return target


def load_mask(path: str | os.PathLike[str], model: nn.Module | None = None) -> Masker:
    """A saved mask, in evaluation mode, on the CPU.

    Args:
        path: the folder that :func:`save_mask` was given, or its ``mask`` folder.
        model: the reference model that it is to read; sizes that do not fit are refused.

    Raises:
        FileNotFoundError: no mask there.
        ValueError: naming file and field: unknown kind or field, a newer format, sizes that differ between JSON and
            weights, missing, unknown or non-finite tensors, a model that does not fit.
    """
    folder = mask_folder(path)
    file = folder / JSON_NAME
    content = _read_json(file)
    mask = _build(content["kind"], content["settings"], file)
    _load_weights(mask, folder)
    if model is not None:
        mask.check_fits(model)
    return mask.eval()


def mask_folder(path: str | os.PathLike[str]) -> Path:
    """The folder that holds ``mask.json``: ``path`` or ``path/mask``. Raises ``FileNotFoundError``."""
    for folder in (Path(path) / FOLDER, Path(path)):
        if (folder / JSON_NAME).is_file():
            return folder
    raise FileNotFoundError(f"No mask in {path}: neither {FOLDER}/{JSON_NAME} nor {JSON_NAME} is there.")


def read_mask_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked content of ``mask.json``: format, kind, settings, base_model, sparsepo_version."""
    return _read_json(mask_folder(path) / JSON_NAME)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(_LARGEST_JSON + 1)
        if len(text) > _LARGEST_JSON:
            raise ValueError(f"it has more than {_LARGEST_JSON >> 20} Mi characters")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}, expected an object with {', '.join(_FIELDS)}.")
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"{file}: format={version} is newer than this library's {FORMAT} (written by sparsepo "
            f"{content.get('sparsepo_version')}); update sparsepo."
        )
    for name, kind in _FIELDS.items():
        if name not in content:
            raise ValueError(f"{file} lacks the field {name!r}.")
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise ValueError(f"{file}: {name}={content[name]!r} has the wrong type.")
    unknown = sorted(set(content) - set(_FIELDS))
    if unknown:
        raise ValueError(f"{file} has unknown fields: {', '.join(unknown)}.")
    if version != FORMAT:
        raise ValueError(f"{file}: format={version!r} is unknown; this library reads {FORMAT}.")
    if content["kind"] not in MASKS:
        raise ValueError(f"{file}: kind={content['kind']!r} is unknown; known are {', '.join(MASKS)}.")
    return content


def _build(kind: str, settings: dict[str, Any], file: Path) -> Masker:
    """The mask with its parameters on the meta device: wrong sizes cost nothing before they are compared."""
    try:
        with torch.device("meta"):
            mask = MASKS[kind](**settings)
    except (TypeError, ValueError, RuntimeError, OverflowError, ArithmeticError, AttributeError, LookupError) as error:
        raise ValueError(f"{file}: the settings do not make a {kind!r} mask: {error}") from error
    missing = sorted(set(mask.settings()) - set(settings) - set(mask.later_settings))
    if missing:
        raise ValueError(f"{file}: settings lack {', '.join(missing)}.")
    return mask


def _load_weights(mask: Masker, folder: Path) -> None:
    file = folder / TENSORS_NAME
    expected = mask.state_dict()
    if not expected:
        if file.exists():
            raise ValueError(f"{file} holds weights, but {folder / JSON_NAME} says kind={mask.kind!r}, which has none.")
        return
    if not file.is_file():
        raise ValueError(f"{file} is missing; a {mask.kind!r} mask has weights.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    optional = {name for name, _ in mask.named_buffers()}  # the controller's: files from before it lack them
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors and name in optional:
            continue
        if name not in tensors:
            raise ValueError(f"{file} lacks the tensor {name!r}.")
        if name not in expected:
            raise ValueError(f"{file} has the tensor {name!r}, which the settings in {JSON_NAME} do not call for.")
        ours, theirs = tuple(expected[name].shape), tuple(tensors[name].shape)
        if ours != theirs:
            raise ValueError(f"{file}: {name} has shape {theirs}, but the settings in {JSON_NAME} ask for {ours}.")
        if not tensors[name].is_floating_point() or not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{file}: {name} holds values that are not finite numbers.")
    mask.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()}, assign=True)
