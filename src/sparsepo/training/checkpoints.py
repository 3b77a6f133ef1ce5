"""Saving, loading and resuming: the mask head beside a plain Hugging Face model, never inside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsepo.masks import Masker, load_mask, save_mask
from sparsepo.masks.saving import read_mask_info
from sparsepo.objectives import Objective

from .sharding import saves_shards
from .step import MASK_ATTRIBUTE, base_model_of
from .trl_bridge import unpickled_hub_push, versions

SETTINGS_FILE = "sparsepo.json"
MASK_FOLDER = "mask"
REFERENCE_FOLDER = "reference"
_PICKLED_ARGUMENTS = "training_args.bin"


def attach_mask(model: Any, masker: Masker, device: torch.device | None = None) -> None:
    """Make a trained mask head a float32 submodule of the policy whose keys no save of the policy contains.

    As a submodule its gradients are reduced with the policy's (under FSDP2: by us) and its weights follow the policy's
    device, unless ``device`` names another.
    """
    base = base_model_of(model)
    device = next(base.parameters()).device if device is None else device
    base.add_module(MASK_ATTRIBUTE, masker.to(device=device, dtype=torch.float32))
    keys = {f"{MASK_ATTRIBUTE}.{name}" for name in masker.state_dict()}
    base._keys_to_ignore_on_save = set(base._keys_to_ignore_on_save or ()) | keys


def detach_mask(model: Any) -> None:
    """Undo :func:`attach_mask`: the model is a plain Hugging Face model again."""
    base = base_model_of(model)
    masker = base._modules.pop(MASK_ATTRIBUTE, None)
    if masker is not None:
        keys = {f"{MASK_ATTRIBUTE}.{name}" for name in masker.state_dict()}
        base._keys_to_ignore_on_save = set(base._keys_to_ignore_on_save or ()) - keys


def split_state(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A policy's state dict → (without the mask head, the mask head's own, or None where it holds none)."""
    marker = f"{MASK_ATTRIBUTE}."
    policy = {key: value for key, value in state_dict.items() if marker not in key}
    mask = {key.split(marker, 1)[1]: value for key, value in state_dict.items() if marker in key}
    return policy, mask or None


def write_settings(
    folder: str | os.PathLike[str], objective: Objective, masker: Masker | None, extra: dict[str, Any]
) -> None:
    """Write ``sparsepo.json``: objective, mask kind and settings, base model, versions."""
    content = {
        "format": 1,
        "objective": {"name": objective.name, **objective.settings()},
        "mask": None if masker is None else {"kind": masker.kind, **masker.settings()},
        "versions": versions(),
        **extra,
    }
    path = Path(folder) / SETTINGS_FILE
    temporary = path.with_suffix(".json.partial")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


class MaskCheckpoints:
    """The parts of a Trainer that save and load, extended to the mask head. Mixed into the trainer before TRL's class."""

    # set by the trainer
    args: Any
    model: Any
    accelerator: Any
    ref_model: Any
    masker: Masker | None
    objective: Objective
    trained_mask_names: frozenset[str] = frozenset()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        mask_state = None  # gathered from shards, where there are shards
        if state_dict is not None:
            state_dict, mask_state = split_state(state_dict)
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        self._save_beside(output_dir or self.args.output_dir, mask_state)

    def _save_beside(self, folder: str, mask_state: dict[str, Any] | None = None) -> None:
        """What belongs to a saved policy: the mask, the settings, a reference that has moved."""
        if not self.args.should_save:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        if self.masker is not None:
            save_mask(self.masker, folder, base_model=self.base_model_name(), state_dict=mask_state)
        if self.args.sync_ref_model:  # the reference has moved: no other copy of it exists, and masks read it
            base_model_of(self.ref_model).save_pretrained(Path(folder) / REFERENCE_FOLDER)
        write_settings(folder, self.objective, self.masker, self.saved_settings())
        # Trainer pickles its arguments; nothing here reads them, and what is published holds no pickles
        Path(folder, _PICKLED_ARGUMENTS).unlink(missing_ok=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's saving; a policy in shards is gathered, so that the folder loads without FSDP. A collective call.

        Checkpoints with SHARDED_STATE_DICT stay in shards, which Trainer writes itself.
        """
        if saves_shards(self.accelerator):
            folder = output_dir or self.args.output_dir
            if _internal_call:
                self._save_beside(folder)
            else:
                self._save(folder, self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def base_model_name(self) -> str | None:
        """Id or path of the model that training started from."""
        return getattr(base_model_of(self.model).config, "_name_or_path", None) or None

    def saved_settings(self) -> dict[str, Any]:
        """What ``sparsepo.json`` says besides objective and mask."""
        return {"base_model": self.base_model_name(), "seed": self.args.seed}

    def _load_mask_of(self, folder: str) -> None:
        """Put the mask weights of a checkpoint into the attached head; refuse a checkpoint of another mask."""
        if self.masker is None:
            problem = _left_out(folder)
        else:
            saved = load_mask(folder)
            problem = _difference(self.masker, saved)
        if problem:
            raise ValueError(
                f"{folder}/{MASK_FOLDER} holds another mask than this run's: {problem}. Resume with the settings that the "
                "checkpoint was made with."
            )
        if self.masker is not None and self.trained_mask_names:
            self.masker.load_state_dict(saved.state_dict())
            # PEFT's load_adapter freezes every parameter outside the adapter
            for name, parameter in self.masker.named_parameters():
                parameter.requires_grad_(name in self.trained_mask_names)

    def _load_reference_of(self, folder: str) -> None:
        """With sync_ref_model: put the moved reference of a checkpoint back."""
        if not self.args.sync_ref_model:
            return
        saved = Path(folder) / REFERENCE_FOLDER
        if not saved.is_dir():
            raise FileNotFoundError(
                f"{saved} is missing: the checkpoint was made without sync_ref_model=True; set it to False to go on."
            )
        reference = base_model_of(self.ref_model)
        loaded = type(reference).from_pretrained(saved, dtype=reference.dtype)
        reference.load_state_dict(loaded.state_dict())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self._load_mask_of(resume_from_checkpoint)
        self._load_reference_of(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        self._load_mask_of(self.state.best_model_checkpoint)  # type: ignore[attr-defined]
        self._load_reference_of(self.state.best_model_checkpoint)  # type: ignore[attr-defined]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer copies model files only: the mask that belongs to this policy goes along, or neither does."""
        if not self._pushes_now():
            return
        output_dir = Path(self.args.output_dir)
        for name in (MASK_FOLDER, REFERENCE_FOLDER):
            if Path(checkpoint_folder, name).is_dir():
                shutil.copytree(Path(checkpoint_folder, name), output_dir / name, dirs_exist_ok=True)
        if Path(checkpoint_folder, SETTINGS_FILE).is_file():
            shutil.copy(Path(checkpoint_folder, SETTINGS_FILE), output_dir / SETTINGS_FILE)
        with unpickled_hub_push():
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]
        (output_dir / "_training_args.bin").unlink(missing_ok=True)

    def _pushes_now(self) -> bool:
        """Trainer's own conditions: the main process, not only at the end, and no earlier push under way."""
        if not self.is_world_process_zero() or self.args.hub_strategy == "end":  # type: ignore[attr-defined]
            return False
        running = self.push_in_progress  # type: ignore[attr-defined]
        return self.args.hub_always_push or running is None or running.is_done()


def _left_out(folder: str) -> str | None:
    """What a run without masks would drop from a checkpoint."""
    try:
        return f"there is a {read_mask_info(folder)['kind']!r} mask there and none here"
    except FileNotFoundError:
        return None


def _difference(ours: Masker, saved: Masker) -> str | None:
    if ours.kind != saved.kind:
        return f"kind is {saved.kind!r} there and {ours.kind!r} here"
    # how a head started and drops out in training does not change what its weights mean
    ignored = ("init", "seed", "dropout") if ours.kind == "learned" else ()
    mine, theirs = ours.settings(), saved.settings()
    for name in mine:
        if name not in ignored and mine[name] != theirs.get(name):
            return f"{name} is {theirs.get(name)!r} there and {mine[name]!r} here"
    return None
