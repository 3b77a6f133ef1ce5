"""SparsePOTrainer: TRL's DPOTrainer with token-level scores, masks and their own optimiser group."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from sparsepo.masks import LearnedMask, Masker
from sparsepo.scoring import DenseScorer, FusedScorer

from .caching.control import ReferenceCaching, refuse_streams
from .card import append_to_card, card_tags, describe_run, paper_of
from .checkpoints import MaskCheckpoints, attach_mask, detach_mask
from .collator import PAIR_WEIGHT, ROW_ID, WEIGHT_COLUMNS, PreferenceCollator
from .config import SparsePOConfig
from .dropout import disable_functional_dropout
from .mask_control import MaskControl
from .mask_setup import build_masker, fit_from_mapo
from .metrics import MetricSums
from .non_finite import NonFiniteSteps
from .optimisation import MaskOptimisation
from .parallelism import refuse_parallelism, refuse_quantisation, refuse_unsharded_run
from .prefix import PrefixSharing
from .preparation import after_tokenisation, before_tokenisation, cut_and_filter, is_prepared
from .refusals import (
    refuse_cache,
    refuse_dataset,
    refuse_low_precision_masks,
    refuse_model,
    refuse_peft_config,
    refuse_processor,
    refuse_reentrant_routing,
    refuse_reference,
    refuse_settings,
    refuse_sync_without_reference,
)
from .run_guard import RunGuard
from .settings import ResolvedSettings, resolve_settings
from .sharding import is_fsdp2, keep_float32_results, refuse_before_sharding
from .step import base_model_of
from .streams import FilledStream
from .token_loss import TokenLoss
from .trl_bridge import (
    DPOTrainer,
    construction,
    release_wrapper,
    remove_step_forward,
    replace_reference_sync,
    versions,
)
from .watch import MaskWatch

logger = logging.getLogger(__name__)


class SparsePOTrainer(
    RunGuard,
    NonFiniteSteps,
    MaskWatch,
    MaskCheckpoints,
    MaskOptimisation,
    MaskControl,
    ReferenceCaching,
    TokenLoss,
    DPOTrainer,
):
    """Preference optimisation by token: SparsePO, MaPO, TDPO, DPO, SimPO and DPOP over one training loop.

    Takes what TRL's ``DPOTrainer`` takes, and a mask. To move a DPO script over, change the names of trainer and config.

    Args:
        model: path, hub id, ``PreTrainedModel`` or ``PeftModel``.
        ref_model: the frozen reference. None: the model as it was where ``model`` came from, loaded once more, as TRL does
            (with PEFT the policy without its adapter; of a model that came from nowhere, a copy). Hand one over if you
            changed the weights after loading. It is not loaded where neither objective nor mask reads it.
        args: a :class:`SparsePOConfig`.
        train_dataset, eval_dataset: TRL's preference formats; HH transcripts are split at their last turn. Optional
            columns ``chosen_weights`` and ``rejected_weights`` for ``mask='data'``.
        mask: a masker of your own instead of the one that ``args`` describes.
        data_collator, processing_class, compute_metrics, callbacks, optimizers, quantization_config, peft_config: as in
            TRL.

    Raises:
        ValueError: a setting, model or dataset that cannot work with token-level scores, with the reason and the mend.

    Source: arXiv 2410.05102; docs/method.md lists where the defaults depart from the paper.
    """

    # compute_loss divides by the number of pairs in the whole optimiser step itself
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        ref_model: nn.Module | None = None,
        args: SparsePOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[..., Any] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        mask: Masker | None = None,
    ) -> None:
        args = args if args is not None else _default_config(model)
        if not isinstance(args, SparsePOConfig):
            raise TypeError(f"args must be a SparsePOConfig, got {type(args).__name__}; it takes DPOConfig's settings.")
        self.settings: ResolvedSettings = resolve_settings(args, mask)
        self.objective = self.settings.objective
        # masks come from the reference, and an objective that reads masks reads the reference anyway
        self.needs_reference = self.objective.needs_reference
        self.scorer = DenseScorer() if args.scorer == "dense" else FusedScorer(args.scorer_memory_mib)
        self.prefix = PrefixSharing(args.share_prefix)
        self.masker: Masker | None = mask
        self._sums = {"train": MetricSums(), "eval": MetricSums()}
        self._new_tokens: Tensor | int = 0  # of this process since the last count
        self._start_is_fitted = False
        refuse_cache(args, self.objective)
        refuse_parallelism(args, self.settings.mask_kind == "learned" if mask is None else mask.is_trainable)
        refuse_quantisation(quantization_config, args, peft_config is not None)
        self._refuse(args, model, ref_model, processing_class, peft_config, train_dataset, eval_dataset)
        if isinstance(model, nn.Module):
            detach_mask(model)  # that of an earlier run: it would be copied, optimised and saved along
        self._name = self.objective.display_name
        self._paper = paper_of(self.objective)
        if ref_model is None and self.needs_reference and peft_config is None and _has_no_source(model):
            ref_model = copy.deepcopy(model)  # built from a config: there is nothing to load it from
        self._reference_was_given = ref_model is not None
        with construction(self._wants_reference_model, isinstance(model, str), PreferenceCollator):
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        self.beta = self.objective.beta
        self._finish_models(args)
        self._set_up_mask(args, optimizers)
        self._set_up_monitor()
        self._set_up_cache()

    # ---- construction ----

    @staticmethod
    def _refuse(
        args: SparsePOConfig,
        model: Any,
        ref_model: Any,
        processing_class: Any,
        peft_config: Any,
        train_dataset: Any,
        eval_dataset: Any,
    ) -> None:
        refuse_settings(args)
        refuse_processor(processing_class)
        refuse_peft_config(peft_config)
        if isinstance(model, nn.Module):
            refuse_model(model, "policy")
            refuse_reference(model, ref_model)
        if ref_model is not None:
            refuse_model(ref_model, "reference")
        held_out = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        sets = {"training": train_dataset, **held_out}
        if args.precompute_ref:
            refuse_streams(sets)
        for name, dataset in sets.items():
            refuse_dataset(dataset, name)

    def _finish_models(self, args: SparsePOConfig) -> None:
        """What remains to be checked and done once TRL has loaded the models."""
        refuse_unsharded_run(args, self.accelerator)
        refuse_model(self.model, "policy")
        refuse_reference(self.model, self.ref_model)
        if args.disable_dropout:
            disable_functional_dropout(self.model)
        refuse_reentrant_routing(args, self.aux_loss_enabled)
        if self.ref_model is not None:
            self.ref_model.eval()
            self.ref_model.requires_grad_(False)
        if args.sync_ref_model:
            refuse_sync_without_reference(self.ref_model, self.objective.name)
            replace_reference_sync(self)
        self.model.add_model_tags(card_tags(self.objective, None))

    def _set_up_mask(self, args: SparsePOConfig, optimizers: tuple[Any, Any]) -> None:
        reference = self.ref_model if self.ref_model is not None else self.model
        if self.masker is None:
            self.masker = build_masker(self.settings, base_model_of(reference), args.seed)
        else:
            self.masker.check_fits(base_model_of(reference))
        refuse_low_precision_masks(args, self.masker)
        keep_float32_results(self.accelerator)
        if self.masker is not None and self.masker.is_trainable:
            self._refuse_foreign_optimizer(optimizers)
            trained = (name for name, parameter in self.masker.named_parameters() if parameter.requires_grad)
            self.trained_mask_names = frozenset(trained)
            attach_mask(self.model, self.masker)
        elif self.masker is not None:
            self.masker.to(self.accelerator.device).eval()
        self._set_up_control()

    # ---- data ----

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if is_prepared(dataset):
            return dataset if args.max_prompt_length is None else cut_and_filter(dataset, dataset_name, args)
        dataset = before_tokenisation(dataset, dataset_name)
        uncut = copy.copy(args)
        uncut.max_length = None  # TRL's filter would drop long prompts before they are cut
        dataset = super()._prepare_dataset(dataset, processing_class, uncut, dataset_name)
        wants_weights = self.masker.needs_weights if self.masker is not None else self.settings.mask_kind == "data"
        dataset = after_tokenisation(dataset, dataset_name, self._tokenizer, wants_weights)
        return cut_and_filter(dataset, dataset_name, args)

    def prepare_pairs(self, dataset: Any, name: str = "given") -> Any:
        """Rows in TRL's preference formats as the trainer prepares its own: for ``get_eval_dataloader`` and inspection.

        Args:
            dataset: a ``datasets.Dataset``.
            name: what messages call it.
        """
        return self._prepare_dataset(dataset, self.processing_class, self.args, name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for column in (ROW_ID, PAIR_WEIGHT, *WEIGHT_COLUMNS):
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        processes = self.accelerator.num_processes
        if isinstance(dataset, IterableDataset) and processes > 1 and not self.args.dataloader_drop_last:
            dataset = FilledStream(dataset, processes * batch_size)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    # ---- loops ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's training; afterwards the model has its own forward back."""
        if resume_from_checkpoint:
            self._start_is_fitted = True  # the checkpoint's mask is further on
        if not is_fsdp2(self.accelerator):  # there it waits until the policy is on its devices
            self._fit_start()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._restore_forward()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, with metrics averaged exactly over rows and tokens of all processes."""
        refuse_before_sharding(self.model, self.accelerator)
        self._fit_start()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            if not self.is_in_train:
                self._restore_forward()

    def end(self) -> None:
        """Finish trackers and process group: the last call of a script that runs in several processes."""
        release_wrapper(self)
        super().end()

    def _restore_forward(self) -> None:
        for model in (self.model, self.ref_model):
            if model is not None:
                remove_step_forward(base_model_of(self.accelerator.unwrap_model(model)))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Adds the exact averages under the split's own prefix; ``loss`` replaces Trainer's average of batch means."""
        self._sums["eval"] = MetricSums()
        self._begin_watched_evaluation(dataloader)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        values = self._sums["eval"].drain(self.accelerator)
        values |= self._end_watched_evaluation(metric_key_prefix, values)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log. A collective call, as Trainer's loop makes it."""
        if self.model.training:
            logs.update(self._sums["train"].drain(self.accelerator))
            logs["num_tokens"] = self._count_tokens()
            if self.mask_grad_norm is not None:
                logs["mask/grad_norm"] = float(self.mask_grad_norm)
            logs.update(self._read_monitor())
            logs.update(self._control_logs())
        super().log(logs, start_time)

    def _count_tokens(self) -> int:
        """Tokens of all processes so far, kept where checkpoints keep them. A collective call."""
        new = torch.as_tensor(self._new_tokens, device=self.accelerator.device)
        self._new_tokens = 0
        if self.args.include_num_input_tokens_seen == "no":  # otherwise Trainer counts itself
            self.state.num_input_tokens_seen += int(self.accelerator.reduce(new, reduction="sum"))
        return self.state.num_input_tokens_seen

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._count_tokens()
        super()._save_checkpoint(model, trial)

    def _fit_start(self) -> None:
        """mask_init='mapo': fit the head on the first training pairs, the same ones on every process."""
        training = self.settings.mask_training
        if self._start_is_fitted or training is None or training.init != "mapo":
            self._release_unneeded_reference()
            return
        assert isinstance(self.masker, LearnedMask)
        rows = list(self.train_dataset.take(training.init_pairs))
        size = self.args.per_device_train_batch_size
        batches = (
            self._prepare_inputs(self.data_collator(rows[first : first + size])) for first in range(0, len(rows), size)
        )
        reference = self.ref_model if self.ref_model is not None else self.model
        self.start_fit = fit_from_mapo(self.masker, reference, batches, self._view, self._reference_context)
        self._start_is_fitted = True
        self._release_unneeded_reference()

    # ---- model card ----

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """TRL's card with a section on objective and masks."""
        own = card_tags(self.objective, self.masker)
        given = [tags] if isinstance(tags, str) else list(tags or [])
        super().create_model_card(model_name, dataset_name, [*given, *(tag for tag in own if tag not in given)])
        if self.is_world_process_zero():
            append_to_card(self.args.output_dir, describe_run(self.objective, self.masker, versions()))


def _default_config(model: Any) -> SparsePOConfig:
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
    return SparsePOConfig(f"{name.rstrip('/').split('/')[-1]}-SparsePO")


def _has_no_source(model: Any) -> bool:
    """Whether the model is an instance that was not loaded from a path or hub id."""
    if isinstance(model, str) or hasattr(model, "peft_config"):
        return False
    return not getattr(model.config, "_name_or_path", "")
