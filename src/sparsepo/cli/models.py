"""Models for the command line: found early, loaded as TRL's scripts load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsepo.loading import load_model, load_tokenizer, positions_in, sampling_device

from .base import CliError

__all__ = ["load_model", "load_tokenizer"]  # beside what is defined here


def check_model_name(name: str | None, flag: str) -> str:
    """The name, if it can be a model: a folder with a config, or something that may be a hub id.

    Raises:
        CliError: none given; a path that does not exist; a folder without a model.
    """
    if not name:
        raise CliError(f"No model: give --{flag} (a folder or hub id), or {flag} in the recipe.")
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            inner = checkpoints_hint(path)
            raise CliError(f"{flag}={name}: the folder holds no model (no config.json).{inner}")
        return str(path)
    elif path.is_file():
        raise CliError(f"{flag}={name} is a file; give the folder that holds config.json and the weights.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CliError(f"{flag}={name}: no such folder.")
    return name


def check_quantisation(model_args: Any) -> None:
    """Refuse 4-bit and 8-bit weights before anything is loaded where bitsandbytes or an adapter is missing.

    Raises:
        CliError: with what to install.
    """
    from sparsepo.training.parallelism import refuse_missing_bitsandbytes, without_adapter

    for bits in (4, 8):
        if getattr(model_args, f"load_in_{bits}bit", False):
            try:
                refuse_missing_bitsandbytes(bits)
            except ValueError as error:
                raise CliError(str(error)) from None
            name = model_args.model_name_or_path
            if not model_args.use_peft and not (name and is_adapter(name)):
                raise CliError(without_adapter(bits))


def checkpoints_hint(folder: Path) -> str:
    """Names a model folder inside a folder that is none, as a hint."""
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f" Inside it there are {', '.join(inner[:4])}." if inner else ""


def is_adapter(name: str) -> bool:
    """Whether a folder holds a PEFT adapter instead of a whole model."""
    return (Path(name).expanduser() / "adapter_config.json").is_file()


def init_kwargs(model_args: Any, config: Any) -> dict[str, Any]:
    """Arguments of ``from_pretrained``, as TRL's scripts put them together."""
    kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "trust_remote_code": config.trust_remote_code,
    }
    return {**kwargs, **(config.model_init_kwargs or {})}


def adapter_config(model_args: Any) -> Any:
    """TRL's LoRA configuration of the flags, or None without ``use_peft``.

    TRL turns a list of one target module into a text, which PEFT reads as a pattern of whole module paths: a plain name
    would match nothing.
    """
    from trl import get_peft_config

    config = get_peft_config(model_args)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.isidentifier():
        config.target_modules = {targets}
    return config


def load_adapter(name: str, kwargs: dict[str, Any], trainable: bool, base: str | None = None) -> Any:
    """A base model with a saved adapter on it, as a ``PeftModel``.

    Args:
        name: folder of the adapter.
        kwargs: arguments for loading the base model.
        trainable: go on training the adapter.
        base: base model instead of the one that the adapter names.

    Raises:
        CliError: the adapter's base model is not there.
    """
    from peft import PeftConfig, PeftModel

    base = base or PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base:
        raise CliError(f"{name}: the adapter names no base model.")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise CliError(f"{name}: its base model {base} is not there; restore it, or give --base_model.")
    model = load_model(base, {key: value for key, value in kwargs.items() if key != "revision"})
    return PeftModel.from_pretrained(model, name, is_trainable=trainable)


def load_for_sampling(name: str, dtype: str, use_cpu: bool, trust_remote_code: bool = False) -> Any:
    """A model or adapter on the device that samples and scores it.

    Raises:
        CliError: no such model.
    """
    place = check_model_name(name, "model")
    kwargs = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    try:
        model = load_adapter(place, kwargs, trainable=False) if is_adapter(place) else load_model(place, kwargs)
    except OSError as error:
        raise CliError(f"The model {name} could not be loaded: {' '.join(str(error).split())}") from error
    return model.to(sampling_device(use_cpu)).eval()


def refuse_other_tokenizer(tokenizer: Any, reference: str, trust_remote_code: bool = False) -> None:
    """Refuse a reference whose tokenizer gives an id to another token: its probabilities would be of other words.

    A reference without tokenizer files is taken at its word. Raises :class:`CliError`.
    """
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(reference, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return
    theirs = {number: token for token, number in other.get_vocab().items()}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(number, token) != token:
            raise CliError(
                f"ref_model_name_or_path={reference}: its tokenizer differs from the policy's (id {number} is {token!r} in "
                f"the policy's and {theirs[number]!r} there): log-ratios and KL need one vocabulary. Give a reference with "
                "the policy's tokenizer."
            )


def positions_of(name: str, trust_remote_code: bool = False) -> int | None:
    """How many positions a model has, where its config says so."""
    from transformers import AutoConfig

    if is_adapter(name):
        from peft import PeftConfig

        name = PeftConfig.from_pretrained(name).base_model_name_or_path or name
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except OSError as error:
        reason = " ".join(str(error).split())
        where = "" if Path(name).exists() else "is no local folder, and the hub could not give it: "
        raise CliError(f"{name!r} {where}{reason}") from error
    return positions_in(config)


def fit_length(config: Any, positions: int | None, console: Any) -> None:
    """No longer rows than the model has positions: beyond them some models crash and others answer nonsense.

    Args:
        config: with ``max_length`` and, where it has one, ``max_prompt_length``; the first is lowered.
        positions: of :func:`positions_of`; None: unknown, and nothing is changed.
        console: where that is said; None: nowhere.

    Raises:
        CliError: prompts would fill all positions.
    """
    from .tables import say

    if positions is None or (config.max_length is not None and config.max_length <= positions):
        return
    say(console, f"max_length {config.max_length} → {positions}: the model has no more positions")
    config.max_length = positions
    longest_prompt = getattr(config, "max_prompt_length", None)
    if longest_prompt is not None and longest_prompt >= positions:
        raise CliError(
            f"max_prompt_length={longest_prompt} leaves no room for a response in the model's {positions} positions; "
            "make it smaller."
        )
