"""Where the reference cache is tied into the trainer."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from sparsepo.masks import Masker
from sparsepo.objectives import Objective
from sparsepo.scoring.products import autocast_operand

from ..mask_setup import build_masker
from ..settings import ResolvedSettings
from ..step import MASK_ATTRIBUTE, ReferenceView, base_model_of
from ..trl_bridge import autocast_of, gathered_heads, lm_head_of, release_reference
from .cache import CachedSet, ReferenceCache, from_main
from .filling import RowSource
from .fingerprint import adapter_settings, config_of, hash_files, hash_tensors, hash_tokenizer, weight_files
from .plan import NO_KL, CachePlan, HeadForm, head_form, plan_cache

# The hub upload of an output folder leaves out what begins with an underscore
DEFAULT_FOLDER = "_reference_cache"
DEFAULT_GIB = 50.0
# Of model_init_kwargs: other files than a folder's usual ones
_OTHER_FILES = ("subfolder", "variant", "gguf_file", "use_safetensors")


class ReferenceCaching:
    """The parts of a Trainer that fill and read the reference cache. Mixed into the trainer before :class:`TokenLoss`."""

    # set by the trainer, or Trainer's own
    accelerator: Any
    args: Any
    model: Any
    ref_model: Any = None  # asked for before TRL has set it
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    processing_class: Any
    is_in_train: bool
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    objective: Objective
    settings: ResolvedSettings
    masker: Masker | None
    needs_reference: bool
    _start_is_fitted: bool
    _reference_was_given: bool
    _cache: ReferenceCache | None = None
    _head_form: HeadForm
    _reference_is_released = False

    # ---- construction ----

    def _wants_reference_model(self) -> bool:
        """Asked where TRL would load a reference of its own: whether anything needs it."""
        if not self.needs_reference:
            return False
        if not self.args.precompute_ref or self._start_needs_reference():
            return True
        if not self._source_is_known():  # then its weights tell it apart, once they are in memory
            return True
        self._open_cache()
        assert self._cache is not None
        return not self._cache.is_complete()

    def _start_needs_reference(self) -> bool:
        """Whether the mask's start is still to be fitted, to activations that no cache keeps."""
        training = self.settings.mask_training
        return training is not None and training.init == "mapo" and not self._start_is_fitted

    def _set_up_cache(self) -> None:
        """Fill the cache as far as it is not there, and let the reference go. A collective call."""
        if not self.args.precompute_ref:
            return
        if self._cache is None:
            self._open_cache()
        assert self._cache is not None
        if not self._cache.is_complete():
            self._fill(self._cache)
        self._cache.read()
        self._release_unneeded_reference()

    def _open_cache(self) -> None:
        """Plan, estimate, refuse or find the files. A collective call."""
        args = self.args
        if self.masker is None:
            self.masker = build_masker(self.settings, base_model_of(self._reference()), args.seed)
        self._head_form = self._form_of_heads()
        folder = args.precompute_ref_dir or Path(args.output_dir) / DEFAULT_FOLDER
        limit = DEFAULT_GIB if args.precompute_ref_max_gib is None else args.precompute_ref_max_gib
        collator = self.data_collator
        cut = (
            getattr(collator, "max_length", args.max_length),
            getattr(collator, "truncation_mode", args.truncation_mode),
        )
        shared = {
            "tokenizer": hash_tokenizer(self.processing_class),
            "collator": type(collator).__qualname__,
            "products": self._product_type(),
        }
        cache = ReferenceCache(Path(folder), limit, self.accelerator, shared, cut)
        cache.add("train", self.train_dataset, self._plan(self.objective.needs_kl))
        held_out = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in held_out.items():
            if dataset is not None:
                cache.add(name, dataset, self._plan(need_kl=True))  # evaluation always shows the KL
        cache.check_size()
        cache.open(self._identity())
        self._cache = cache

    def _products(self) -> AbstractContextManager[Any]:
        """The context in which the scorer multiplies by the head; the dense one leaves mixed precision."""
        return nullcontext() if self.args.scorer == "dense" else autocast_of(self.accelerator)

    def _product_type(self) -> str:
        """Type of the operands of those products: a KL is a small difference of values that must be formed alike."""
        with self._products():
            operand = autocast_operand(torch.empty(0, dtype=self._reference_dtype(), device=self.accelerator.device))
        return str(operand.dtype)

    def _plan(self, need_kl: bool) -> CachePlan:
        return plan_cache(self.masker, need_kl, self._head_form)

    # ---- what the reference is ----

    def _reference(self) -> nn.Module:
        """The reference, or a model of its sizes where it is not loaded."""
        return self.ref_model if self.ref_model is not None else self.model

    def _is_in_policy(self) -> bool:
        """Whether the reference is the policy without its adapter."""
        return self.ref_model is None and hasattr(self.model, "peft_config")

    def _reference_dtype(self) -> torch.dtype:
        """Type of the reference's weights, loaded or not."""
        if self.ref_model is not None or self._is_in_policy():
            return base_model_of(self.accelerator.unwrap_model(self._reference())).dtype
        asked = (self.args.model_init_kwargs or {}).get("dtype")
        asked = getattr(torch, asked, None) if isinstance(asked, str) else asked
        return asked if isinstance(asked, torch.dtype) else self.model.dtype

    def _form_of_heads(self) -> HeadForm:
        model = base_model_of(self.accelerator.unwrap_model(self._reference()))
        with gathered_heads(model):
            with self._reference_context():  # type: ignore[attr-defined]
                head = lm_head_of(model)
            is_shared = False
            if self._is_in_policy():
                policy = lm_head_of(model)
                trained = policy.weight.requires_grad or (policy.bias is not None and policy.bias.requires_grad)
                is_shared = policy.weight is head.weight and policy.bias is head.bias and not trained
            return head_form(head, is_shared, self._reference_dtype().itemsize)

    def _source_files(self) -> list[Path] | None:
        """Files that the reference is loaded from; None for one that was handed over or lives in the policy."""
        if self._reference_was_given or self._is_in_policy():
            return None
        settings = self.args.model_init_kwargs or {}
        if any(settings.get(name) is not None for name in _OTHER_FILES):
            return None
        return weight_files(getattr(self.model.config, "_name_or_path", ""), settings.get("revision"))

    def _source_is_known(self) -> bool:
        """Whether the main process has those files. A collective call."""
        return bool(from_main(self.accelerator, lambda: self._source_files() is not None))

    def _identity(self) -> dict[str, Any]:
        """Everything that tells this reference from another. A collective call."""
        model = base_model_of(self.accelerator.unwrap_model(self._reference()))
        known = self._source_is_known()
        return {
            "weights": self._hash_of_files() if known else self._hash_in_memory(),
            "adapters": {} if known else self._reference_adapters(),
            "config": config_of(model),
            "dtype": str(self._reference_dtype()),
            "precision": self.accelerator.mixed_precision,
        }

    def _hash_of_files(self) -> str:
        return str(from_main(self.accelerator, lambda: hash_files(self._source_files() or [])))

    def _hash_in_memory(self) -> str:
        model = self.accelerator.unwrap_model(self._reference())
        parameters = list(model.parameters())
        if any(hasattr(p, "ds_id") for p in parameters) or any(
            type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()
        ):
            raise ValueError(
                "precompute_ref=True cannot tell a reference in memory from others while its weights are split over "
                "processes (ZeRO-3, FSDP version 1): give the model as a path or hub id, or leave precompute_ref False."
            )
        trained = self._trained_adapters(model)
        prefixes = (getattr(getattr(model, "base_model", None), "prefix", "lora_"), "modules_to_save")

        def is_reference(name: str) -> bool:
            if MASK_ATTRIBUTE in name:
                return False
            parts = name.split(".")
            return not any(own in trained and of.startswith(prefixes) for of, own in itertools.pairwise(parts))

        def digest() -> str:
            return hash_tensors((name, value) for name, value in model.state_dict().items() if is_reference(name))

        if any(hasattr(p, "full_tensor") for p in parameters):  # gathered by all
            return digest()
        return str(from_main(self.accelerator, digest))

    def _trained_adapters(self, model: Any) -> set[str]:
        """Adapters that are no part of the reference: the policy's, where the reference is the policy without them."""
        return set(getattr(model, "peft_config", {})) - {"ref"} if self._is_in_policy() else set()

    def _reference_adapters(self) -> dict[str, Any]:
        """Settings of the adapters through which the reference is run, by name."""
        model = self.accelerator.unwrap_model(self._reference())
        trained = self._trained_adapters(model)
        configs = {name: own for name, own in getattr(model, "peft_config", {}).items() if name not in trained}
        return {name: adapter_settings(own.to_dict()) for name, own in sorted(configs.items())}

    # ---- filling ----

    def _fill(self, cache: ReferenceCache) -> None:
        """Run the reference over the missing rows. A collective call."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded and self._is_in_policy():
            raise ValueError(
                "precompute_ref=True cannot fill the cache here: the reference is the policy without its adapter, which "
                "FSDP and DeepSpeed split up when training starts. Start the run once without them to fill "
                f"{cache.root}, then again as it is: the files are found there."
            )
        try:
            cache.fill(self._source_of, sharded, show=self.accelerator.is_main_process)  # it may take long
        finally:
            if not self.is_in_train:
                self._restore_forward()  # type: ignore[attr-defined]

    def _source_of(self, part: CachedSet) -> RowSource:
        masker = self.masker if part.plan.layers or part.plan.masks else None

        def view_of(batch: dict[str, Any]) -> ReferenceView:
            with self._reference_context():  # type: ignore[attr-defined]
                return self._view(batch, masker)

        return RowSource(
            rows=self._remove_unused_columns(part.dataset, description=part.name),  # type: ignore[attr-defined]
            row_tokens=part.row_tokens,
            collate=lambda rows: self._prepare_inputs(self.data_collator(rows)),  # type: ignore[attr-defined]
            batch_size=self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size,
            view_of=view_of,
            masker=masker,
            products=self._products,
        )

    def _release_unneeded_reference(self) -> None:
        """Free the reference model once nothing runs it any more."""
        if self._cache is None or self._is_in_policy() or self._start_needs_reference():
            return
        if self.ref_model is not None:
            release_reference(self)
        self._reference_is_released = True

    # ---- reading ----

    def _view(self, batch: dict[str, Any], masker: Masker | None) -> ReferenceView:
        if self._reference_is_released:  # the policy would be run in its place
            raise RuntimeError(_NOT_CACHED)
        view: ReferenceView = super()._view(batch, masker)  # type: ignore[misc]
        return view

    def _reference_view(self, batch: dict[str, Any], need_kl: bool) -> ReferenceView:
        view: ReferenceView | None = None
        if self._cache is not None:
            view = self._cache.view(batch, need_kl, self.masker)
            if view is None and self.is_in_train:
                raise RuntimeError(_NOT_CACHED)
        if view is None:
            view = super()._reference_view(batch, need_kl)  # type: ignore[misc]
        return view

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        if self._cache is not None:
            self._cache_rows(self._cache, dataset, description)
        return super()._get_dataloader(dataset, description, *args, **kwargs)  # type: ignore[misc]

    def _cache_rows(self, cache: ReferenceCache, dataset: Any, description: str) -> None:
        """Make sure that a data set about to be looped over is cached. A collective call."""
        if not isinstance(dataset, Dataset):
            raise ValueError(_STREAM.format(name=description.lower()))
        need_kl = self.objective.needs_kl or description != "Training"
        for part in cache.sets:
            if part.dataset._fingerprint == dataset._fingerprint and (part.plan.kl != NO_KL or not need_kl):
                return
        part = cache.add(description.lower(), dataset, self._plan(need_kl))
        try:
            cache.check_size()
            cache.open(cache.reference or {})
            if part.missing and self._reference_is_released:
                raise ValueError(
                    f"The {part.name} data set is not in the reference cache and the reference is no longer loaded "
                    "(precompute_ref=True). Give it to the trainer's constructor as eval_dataset."
                )
            if part.missing:
                self._fill(cache)
        except Exception:
            cache.sets.remove(part)
            raise
        cache.read()


_NOT_CACHED = (
    "A batch holds rows that are not in the reference cache, and with precompute_ref=True the reference is not run during "
    "training. Give all data sets to the trainer's constructor, and do not change their rows afterwards."
)
_STREAM = (
    "precompute_ref=True needs rows that can be read again by number, and the {name} data set is a stream: load it as a "
    "Dataset, or leave precompute_ref False."
)


def refuse_streams(datasets: dict[str, Any]) -> None:
    """Refuse data sets that cannot be cached. Raises ``ValueError`` naming the first."""
    for name, dataset in datasets.items():
        if dataset is not None and not isinstance(dataset, Dataset):
            raise ValueError(_STREAM.format(name=name))
