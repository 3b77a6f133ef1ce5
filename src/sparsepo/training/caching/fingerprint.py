"""What the numbers of a cache depend on, as hashes: the reference's weights, the tokenizer, the rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of a config: where it lies, who wrote it, and what Trainer sets; none changes a forward of given tokens
_IGNORED = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "output_hidden_states",
        "output_router_logits",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        *(f"{token}_token_id" for token in ("bos", "eos", "pad")),
    }
)
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def hash_json(value: Any) -> str:
    """sha256 of a value of JSON types (others by their ``str``)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor of any type, as a buffer on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of named tensors: names, types, shapes and contents; sharded ones (DTensor) are gathered one by one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        if not isinstance(tensor, Tensor):  # extra state of quantised modules
            digest.update(f"{name}:{tensor}".encode())
            continue
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        digest.update(f"{name}:{whole.dtype}:{tuple(whole.shape)}".encode())
        if whole.numel():
            digest.update(tensor_bytes(whole))
    return digest.hexdigest()


def weight_files(name: str, revision: str | None) -> list[Path] | None:
    """The files that ``from_pretrained`` reads the weights from, on this machine; None where they cannot be told."""
    folder: Path | None = Path(name)
    if not Path(name).is_dir():
        folder = _snapshot(name, revision)
    if folder is None:
        return None
    found = next((folder / file for file in _WEIGHT_FILES if (folder / file).is_file()), None)
    if found is None:
        return None
    if found.suffix != ".json":
        return [found]
    shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    paths = [found, *(folder / shard for shard in shards)]
    return paths if all(path.is_file() for path in paths) else None


def _snapshot(name: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "config.json", revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path).parent


def hash_files(paths: Iterable[Path]) -> str:
    """sha256 of the files' contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def config_of(model: Any) -> dict[str, Any]:
    """A model's config without what no forward depends on."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _IGNORED}
    return {**config, "attention": getattr(model.config, "_attn_implementation", None)}


def adapter_settings(config: dict[str, Any]) -> dict[str, Any]:
    """An adapter's settings without where it lies and how it is used; sets in order, so that their hash is one."""
    ignored = ("base_model_name_or_path", "inference_mode", "revision", "auto_mapping")
    return {
        key: sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value
        for key, value in config.items()
        if key not in ignored
    }


def hash_tokenizer(tokenizer: Any) -> str:
    """sha256 of what a tokenizer does to a text."""
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("truncation", "padding"):  # what the last call asked for
            content.pop(name, None)
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hash_json([content, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None)])


@dataclass(frozen=True)
class RowTable:
    """Tokens of a prepared data set: their hash, and how many each row has.

    Args:
        digest: sha256 of all token ids, row by row.
        lengths: tokens of prompt, chosen and rejected, (rows, 3).
    """

    digest: str
    lengths: np.ndarray

    def response_tokens(self, max_length: int | None, truncation_mode: str) -> np.ndarray:
        """Response tokens that are predicted from something, after truncation, chosen and rejected, (rows, 2)."""
        prompt, answers = self.lengths[:, :1], self.lengths[:, 1:]
        whole = prompt + answers
        kept = whole if max_length is None else np.minimum(whole, max_length)
        opening = np.minimum(prompt, kept) if truncation_mode == "keep_start" else np.maximum(kept - answers, 0)
        return np.maximum(kept - np.maximum(opening, 1), 0)


def read_rows(dataset: Any) -> RowTable:
    """Hash and lengths of a prepared ``Dataset``."""
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    digest, lengths = hashlib.sha256(), []
    for part in dataset.select_columns(columns).with_format("arrow").iter(1000):
        sizes = []
        for column in columns:
            values = part[column].combine_chunks()
            sizes.append(values.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
            digest.update(sizes[-1].tobytes())
            digest.update(values.flatten().to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        lengths.append(np.stack(sizes, axis=1))
    return RowTable(digest.hexdigest(), np.concatenate(lengths))
