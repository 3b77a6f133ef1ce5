"""``sparsepo sft``: TRL's supervised fine-tuning on local or hub texts, from a model or from nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsepo.loading import positions_in

from .base import CliError, take_option
from .help_texts import SFT_HELP, print_help
from .launching import is_launched, is_main_process, launch
from .recipe_files import read_recipe

PROG = "sparsepo sft"


@dataclass
class SftSettings:
    """All settings of a run, by the dataclass that they belong to."""

    script: Any
    config: Any
    model: Any
    own: Any
    given: set[str]


def run(arguments: list[str]) -> int:
    """Run ``sparsepo sft`` with the arguments behind its name. Returns the exit status."""
    if "-h" in arguments or "--help" in arguments:
        return print_help(SFT_HELP)
    rest, path = take_option(arguments, "--config")
    recipe = read_recipe(path) if path is not None else None
    if recipe is not None:
        os.environ.update(recipe.env)  # before anything that reads the environment is imported
    found = parser()
    if "--help-all" in rest:
        found.print_help()
        return 0
    namespace = found.parse_namespace(rest, recipe)
    if namespace.accelerate_config is not None and not is_launched():
        return launch("sft", arguments, namespace.accelerate_config, namespace.num_processes, namespace.use_cpu)
    if namespace.bf16 is None:
        from sparsepo.training.trl_bridge import bf16_is_supported

        # TRL's default is true wherever fp16 is not set, which a CPU refuses
        namespace.bf16 = not namespace.fp16 and bf16_is_supported(use_cpu=namespace.use_cpu)
    script, config, model, own = found.dataclasses_of(namespace)
    _train(SftSettings(script, config, model, own, found.given), arguments)
    return 0


def parser() -> Any:
    """The parser of all flags: TRL's and ours."""
    from sparsepo.compatibility import check_versions

    check_versions()
    from trl import ModelConfig, ScriptArguments, SFTConfig

    from .arguments import SftArguments
    from .parsing import SettingsParser

    return SettingsParser((ScriptArguments, SFTConfig, ModelConfig, SftArguments), prog=PROG)


def _train(settings: SftSettings, arguments: list[str]) -> None:
    from rich.console import Console

    from .models import check_model_name, check_quantisation
    from .progress import quiet_settings
    from .run_folder import claimed_output_dir

    console = Console() if is_main_process() else None
    own, config, name = settings.own, settings.config, settings.model.model_name_or_path
    check_quantisation(settings.model)
    if own.init_from_config is None:
        name = check_model_name(name, "model_name_or_path")
    elif name is not None:
        raise CliError("model_name_or_path and init_from_config exclude each other; give one.")
    quiet_settings(config, settings.given)
    wish, folder = config.resume_from_checkpoint, config.output_dir
    with claimed_output_dir(wish, folder, own.overwrite_output_dir, name, console) as resume:
        _train_in_folder(settings, name, resume, arguments, console)


def _train_in_folder(
    settings: SftSettings, name: str | None, resume: str | None, arguments: list[str], console: Any
) -> None:
    from trl import get_quantization_config

    from sparsepo.training.sft_trainer import GuardedSFTTrainer

    from .models import adapter_config, fit_length, init_kwargs, positions_of
    from .progress import shorten_logs

    own, config = settings.own, settings.config
    if name is not None:
        fit_length(config, positions_of(name, config.trust_remote_code), console)
    train, evaluation = _texts(settings, console)
    model: Any = name
    tokenizer = None
    if own.init_from_config is not None:
        model, tokenizer = _new_model(settings, train, console)
        fit_length(config, positions_in(model.config), console)
        config.model_init_kwargs = None
    else:
        config.model_init_kwargs = init_kwargs(settings.model, config)
    started = time.time()
    trainer = GuardedSFTTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(settings.model),
        peft_config=adapter_config(settings.model),
    )
    shorten_logs(trainer)
    trainer.train(resume_from_checkpoint=resume)
    _finish(trainer, settings, evaluation is not None, arguments, console, time.time() - started)


def _texts(settings: SftSettings, console: Any) -> tuple[Any, Any]:
    """Training and evaluation rows."""
    own, script = settings.own, settings.script
    if own.text_files and script.dataset_name:
        raise CliError("text_files and dataset_name exclude each other; give one.")
    if not own.text_files and not script.dataset_name:
        raise CliError("No texts: give --dataset_name (a file, folder or hub id) or --text_files FILE ...")
    train = _rows_of(own.text_files or [script.dataset_name], settings, script.dataset_train_split, console)
    if own.eval_dataset is not None:
        return train, _rows_of([own.eval_dataset], settings, script.dataset_test_split, console)
    if own.eval_fraction is not None:
        if script.dataset_streaming:
            raise CliError("eval_fraction needs the whole data set; with dataset_streaming give eval_dataset.")
        if len(train) < 2:
            raise CliError(f"eval_fraction={own.eval_fraction}: {len(train)} row cannot be split.")
        parts = train.train_test_split(test_size=own.eval_fraction, seed=settings.config.seed)
        return parts["train"], parts["test"]
    strategy = str(getattr(settings.config.eval_strategy, "value", settings.config.eval_strategy))
    if strategy == "no":
        return train, None
    if own.text_files or Path(script.dataset_name).expanduser().exists():
        raise CliError(
            f"eval_strategy={strategy} needs evaluation texts: give --eval_dataset, --eval_fraction 0.02, or "
            "--eval_strategy no."
        )
    return train, _rows_of([script.dataset_name], settings, script.dataset_test_split, console)


def _rows_of(sources: list[str], settings: SftSettings, split: str, console: Any) -> Any:
    from .tables import say
    from .texts import load_texts, sft_row

    local = [source for source in sources if Path(source).expanduser().exists() or settings.own.text_files]
    if local:
        dataset, counts = load_texts(sources)
        found = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        say(console, f"{', '.join(sources)}: rows {found}")
        return dataset
    from datasets import load_dataset

    script = settings.script
    try:
        dataset = load_dataset(sources[0], name=script.dataset_config, split=split, streaming=script.dataset_streaming)
    except Exception as error:  # the hub's client raises many kinds
        raise CliError(f"{sources[0]!r} is no local file, and loading it from the hub failed: {error}") from error
    old = list(dataset.column_names or next(iter(dataset)))
    made = dataset.map(lambda row: sft_row(row) or {}, remove_columns=old)
    return made.filter(lambda row: any(value is not None for value in row.values()))


def _new_model(settings: SftSettings, train: Any, console: Any) -> tuple[Any, Any]:
    """A model with random weights and its tokenizer."""
    from .models import load_tokenizer
    from .small_models import model_from_config, train_tokenizer
    from .tables import say
    from .texts import as_text

    own = settings.own
    if own.train_tokenizer:
        tokenizer: Any = train_tokenizer((as_text(row) for row in train), own.vocab_size or 4096)
    else:
        tokenizer = load_tokenizer(own.tokenizer_name_or_path)
    model = model_from_config(own.init_from_config, tokenizer, settings.config.seed)
    positions = positions_in(model.config)
    if positions is not None:
        tokenizer.model_max_length = positions
    size = sum(parameter.numel() for parameter in model.parameters())
    say(console, f"New {model.config.model_type} of {size:,} parameters, vocabulary of {len(tokenizer):,}")
    return model, tokenizer


def _finish(
    trainer: Any, settings: SftSettings, has_evaluation: bool, arguments: list[str], console: Any, seconds: float
) -> None:
    import math

    from sparsepo.training.trl_bridge import release_wrapper, versions

    from .run_folder import command_line, write_summary
    from .tables import final_evaluation, last_logged, metrics_table, say

    config = settings.config
    columns = {"training (last logged)": last_logged(trainer.state.log_history)}
    if has_evaluation:
        columns["evaluation"] = final_evaluation(trainer)
    trainer.save_model(config.output_dir)
    trainer.save_state()
    # Trainer's pickled arguments: nothing reads them, and a published folder should hold no pickles
    Path(config.output_dir, "training_args.bin").unlink(missing_ok=True)
    if trainer.is_world_process_zero():
        content = {
            "command": command_line("sft", arguments),
            "metrics": columns,
            "steps": trainer.state.global_step,
            "seconds": round(seconds, 1),
            "model": settings.model.model_name_or_path or settings.own.init_from_config,
            "versions": versions(),
            "settings": config.to_dict(),
            "given": sorted(settings.given),
        }
        write_summary(config.output_dir, content)
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=settings.script.dataset_name)
    if console is not None:
        console.print(metrics_table(f"sft: {trainer.state.global_step} steps", columns))
        loss = columns.get("evaluation", {}).get("loss")
        if loss is not None:
            say(console, f"evaluation perplexity {math.exp(min(loss, 50)):.4g}")
        say(console, f"Saved in {config.output_dir}")
    release_wrapper(trainer)
    trainer.end()
