"""A saved model on preference pairs, as evaluate and inspect take it: flags, settings, data, models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .base import CliError
from .content_flags import add_content_flags, content_filter_of
from .loading_flags import add_loading_flags

SETTINGS_FILE = "sparsepo.json"
# repeated here because importing them takes seconds (a test compares them)
OBJECTIVES = ("sparsepo", "mapo", "tdpo1", "tdpo2", "dpo", "simpo", "dpop")  # a test keeps them equal to the registry


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which reference, objective and rows, and what is masked where texts are shown."""
    parser.add_argument(
        "--ref_model", help="reference: folder or hub id (default: the model that training started from)"
    )
    parser.add_argument("--split", help="split of the data, as in datasets: test, train[:200]")
    parser.add_argument(
        "--objective", choices=OBJECTIVES, help="loss and rewards of another objective than the saved one"
    )
    parser.add_argument("--beta", type=float, help="β instead of the saved one")
    parser.add_argument(
        "--max_length", type=int, default=1024, help="tokens of prompt and response (default: %(default)s)"
    )
    parser.add_argument("--max_prompt_length", type=int, help="keep only the last tokens of a prompt")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs a batch (default: %(default)s)")
    add_loading_flags(parser, "float32")
    parser.add_argument("--strict", action="store_true", help="stop if the check would drop a row")
    add_content_flags(parser)


def check_output_folder(given: str | None) -> None:
    """Refuse ``--output`` that is there and no folder."""
    if given is not None:
        folder = Path(given).expanduser()
        if folder.exists() and not folder.is_dir():
            raise CliError(f"--output {given} is a file; give a folder.")


def saved_settings(name: str) -> dict[str, Any]:
    """What ``sparsepo.json`` beside a model says; empty where there is none.

    Raises:
        CliError: the file is not what this library writes.
    """
    path = Path(name) / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["objective"]["name"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CliError(f"{path} is damaged: {error}") from error
    return dict(content)


def config_of(args: argparse.Namespace, saved: dict[str, Any], objective: str = "dpo") -> Any:
    """The settings that the objective had in training; with another objective its own defaults.

    Args:
        args: of :func:`add_flags`.
        saved: of :func:`saved_settings`.
        objective: of models that say none.
    """
    from sparsepo.training import SparsePOConfig

    values = dict(saved.get("objective", {"name": objective}))
    name = values.pop("name")
    if args.objective is not None and args.objective != name:
        name, values = args.objective, {}
    if "link" in values:
        values["loss_type"] = [values.pop("link")]
    l1 = {key: values.pop(key, 0.0) for key in ("l1_reward", "l1_kl")}
    if args.beta is not None:
        values["beta"] = args.beta
    if name == "sparsepo" and (saved.get("mask") or {}).get("kind") == "learned":
        # a common mask's weights are saved halved, since both masks count
        factor = 2.0 if _is_common(saved["mask"]) else 1.0
        values |= {f"mask_{key}": factor * weight for key, weight in l1.items() if weight}
    return SparsePOConfig(
        output_dir=_scratch_folder(),  # nothing is written there, but TRL makes the folder
        objective=name,
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        per_device_eval_batch_size=args.batch_size,
        activation_checkpointing=False,
        use_cpu=args.use_cpu,
        trust_remote_code=args.trust_remote_code,
        bf16=False,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=False,
        **values,
    )


def _scratch_folder() -> str:
    """A temporary folder that goes when the process ends."""
    import atexit
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="sparsepo-evaluate-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_common(mask: dict[str, Any]) -> bool:
    return mask.get("sharing") == "common" and mask.get("mask_on", "both") == "both"


def pairs_of(args: argparse.Namespace, config: Any, tokenizer: Any, loaded: Any = None) -> tuple[Any, Any]:
    """The checked rows of ``args.data`` (or ``loaded``), and the report of the check."""
    from sparsepo.data import CheckSettings, check_preferences, load_preference_data
    from sparsepo.data.content import announce_content

    if loaded is None:
        loaded = load_preference_data(args.data, split=args.split)
    settings = CheckSettings(strict=args.strict, truncation_mode=config.truncation_mode)
    words = content_filter_of(args)
    clean, report = check_preferences(
        loaded,
        tokenizer=tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        settings=settings,
        name=args.data or "pair",
    )
    announce_content(report, (), words)  # a notice stands where whole texts are shown
    return clean, report


def reference_name(args: argparse.Namespace, name: str, saved: dict[str, Any]) -> str | None:
    """Where the reference is loaded from; None where none is known."""
    from .models import is_adapter

    if args.ref_model is not None:
        return str(args.ref_model)
    moved = Path(name) / "reference"  # with sync_ref_model the reference moved, and was saved beside the policy
    if (moved / "config.json").is_file():
        return str(moved)
    if is_adapter(name):
        from peft import PeftConfig

        return PeftConfig.from_pretrained(name).base_model_name_or_path
    base = saved.get("base_model")
    return None if base is None else str(base)


def adapter_start(name: str) -> str | None:
    """The adapter that an adapter's training had started from (``ref/``), which is then its reference."""
    from .models import is_adapter

    place = str(Path(name) / "ref")
    return place if is_adapter(name) and is_adapter(place) else None


def trainer_of(
    args: argparse.Namespace, name: str, saved: dict[str, Any], config: Any, dataset: Any, tokenizer: Any
) -> Any:
    """A trainer that evaluates and scores, and trains nothing."""
    from sparsepo.masks import load_mask
    from sparsepo.objectives import get_objective_class
    from sparsepo.training import SparsePOTrainer

    from .models import is_adapter, load_adapter, load_model

    kwargs = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    model = load_adapter(name, kwargs, trainable=False) if is_adapter(name) else load_model(name, kwargs)
    objective = get_objective_class(config.objective)
    reads_masks = objective.reads_masks
    has_mask = (Path(name) / "mask" / "mask.json").is_file()
    if config.objective == "sparsepo" and not has_mask:
        raise CliError(f"{name} has no mask/, which objective sparsepo needs; give --objective tdpo1 or dpo.")
    needs_reference = objective.reads_reference or reads_masks or bool(config.kl_anchor)
    reference = _reference(args, name, saved, kwargs, needs_reference)
    return SparsePOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=dataset,  # TRL wants one; nothing is trained
        eval_dataset=dataset,
        processing_class=tokenizer,
        mask=load_mask(name) if reads_masks and has_mask else None,
    )


def _reference(args: argparse.Namespace, name: str, saved: dict[str, Any], kwargs: dict[str, Any], needed: bool) -> Any:
    """The frozen reference model.

    An adapter's is its base without the adapter, or the adapter that its training had started from (``ref/``).
    """
    from .models import check_model_name, load_adapter, load_model

    if not needed and args.ref_model is None:
        return None
    if args.ref_model is None and (started_from := adapter_start(name)) is not None:
        return load_adapter(started_from, kwargs, trainable=False)
    found = reference_name(args, name, saved)
    if found is None:
        raise CliError(f"{name} does not say what it was trained from: give its reference with --ref_model.")
    is_itself = Path(found).is_dir() and Path(name).is_dir() and Path(found).samefile(name)
    if is_itself and not getattr(args, "own_reference", False):
        raise CliError(f"The reference is the model itself ({found}); give the model before training with --ref_model.")
    try:
        return load_model(check_model_name(found, "ref_model"), kwargs)
    except (OSError, CliError) as error:
        raise CliError(f"The reference {found} could not be loaded; give it with --ref_model. ({error})") from error
