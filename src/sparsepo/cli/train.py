"""``sparsepo train``: preference training from flags and recipes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base import CliError, take_option
from .help_texts import TRAIN_HELP, print_help
from .launching import is_launched, is_main_process, launch
from .recipe_files import read_recipe

PROG = "sparsepo train"


@dataclass
class TrainSettings:
    """All settings of a run, by the dataclass that they belong to."""

    script: Any
    config: Any
    model: Any
    mixture: Any
    own: Any
    given: set[str]


def run(arguments: list[str]) -> int:
    """Run ``sparsepo train`` with the arguments behind its name. Returns the exit status."""
    if "-h" in arguments or "--help" in arguments:
        return print_help(TRAIN_HELP)
    _recipe_environment(arguments)  # before anything that reads the environment is imported
    if "--help-all" in arguments:
        parser().print_help()
        return 0
    parsed, namespace = _parse(arguments)
    if namespace.accelerate_config is not None and not is_launched():
        return launch("train", arguments, namespace.accelerate_config, namespace.num_processes, namespace.use_cpu)
    _train(_settings(parsed, namespace), arguments)
    return 0


def parser() -> Any:
    """The parser of all flags: TRL's, the trainer's and ours."""
    from sparsepo.compatibility import check_versions

    check_versions()
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from sparsepo.training import SparsePOConfig

    from .arguments import TrainArguments
    from .parsing import SettingsParser

    kinds = (ScriptArguments, SparsePOConfig, ModelConfig, DatasetMixtureConfig, TrainArguments)
    return SettingsParser(kinds, prog=PROG)


def parse(arguments: list[str]) -> TrainSettings:
    """Settings from flags and ``--config``, checked by their dataclasses."""
    parsed, namespace = _parse(arguments)
    return _settings(parsed, namespace)


def _settings(parsed: Any, namespace: Any) -> TrainSettings:
    script, config, model, mixture, own = parsed.dataclasses_of(namespace)
    return TrainSettings(script, config, model, mixture, own, parsed.given)


def _parse(arguments: list[str]) -> tuple[Any, Any]:
    rest, path = take_option(arguments, "--config")
    recipe = read_recipe(path) if path is not None else None
    found = parser()
    return found, found.parse_namespace(rest, recipe)


def _recipe_environment(arguments: list[str]) -> None:
    _, path = take_option(arguments, "--config")
    if path is not None:
        os.environ.update(read_recipe(path).env)


def _train(settings: TrainSettings, arguments: list[str]) -> None:
    from rich.console import Console

    from sparsepo.training.refusals import refuse_settings
    from sparsepo.training.settings import resolve_settings

    from .content_flags import content_filter_of
    from .models import check_model_name, check_quantisation
    from .progress import quiet_settings
    from .run_folder import claimed_output_dir
    from .training_samples import sampled_prompts

    console = Console() if is_main_process() else None
    own, config = settings.own, settings.config
    content_filter_of(own)  # a file of words that is missing is found before anything is loaded
    quiet_settings(config, settings.given)
    refuse_settings(config)  # the trainer does so too, but only once models and data have been read
    resolve_settings(config)
    name = check_model_name(settings.model.model_name_or_path, "model_name_or_path")
    check_quantisation(settings.model)
    if own.ref_model_name_or_path is not None:
        check_model_name(own.ref_model_name_or_path, "ref_model_name_or_path")
    if not settings.script.dataset_name and not settings.mixture.datasets:
        raise CliError("No data: give --dataset_name (a file, folder or hub id), or dataset_name in the recipe.")
    sampled = sampled_prompts(own, config.seed, console)
    wish, folder = config.resume_from_checkpoint, config.output_dir
    with claimed_output_dir(wish, folder, own.overwrite_output_dir, name, console) as resume:
        _train_in_folder(settings, name, resume, sampled, arguments, console)


def _train_in_folder(
    settings: TrainSettings, name: str, resume: str | None, sampled: Any, arguments: list[str], console: Any
) -> None:
    from .content_flags import content_filter_of
    from .models import fit_length, load_tokenizer, positions_of, refuse_other_tokenizer
    from .pages import keep_pairs
    from .preference_sets import DataRequest, preference_sets
    from .progress import shorten_logs
    from .training_samples import keep_samples

    own, config = settings.own, settings.config
    fit_length(config, positions_of(name, config.trust_remote_code), console)
    tokenizer = load_tokenizer(name, settings.model.model_revision, config.trust_remote_code)
    if own.ref_model_name_or_path is not None:
        refuse_other_tokenizer(tokenizer, own.ref_model_name_or_path, config.trust_remote_code)
    sets = preference_sets(
        DataRequest(
            settings.script, settings.mixture, own, config, settings.given, tokenizer, config.max_length, console
        )
    )
    started = time.time()
    trainer = _trainer(settings, name, tokenizer, sets)
    shorten_logs(trainer)
    keep_pairs(trainer, own.inspect_pairs, content_filter_of(own))
    keep_samples(trainer, tokenizer, sampled)
    trainer.train(resume_from_checkpoint=resume)
    _refuse_stopped(trainer)
    _finish(trainer, settings, sets, arguments, console, time.time() - started)


def _trainer(settings: TrainSettings, name: str, tokenizer: Any, sets: Any) -> Any:
    from trl import get_quantization_config

    from sparsepo.training import SparsePOTrainer
    from sparsepo.training.parallelism import refuse_quantisation

    from .models import adapter_config, init_kwargs, is_adapter, load_adapter, load_model

    config = settings.config
    kwargs = init_kwargs(settings.model, config)
    quantised = get_quantization_config(settings.model)
    model: Any = name
    if is_adapter(name):
        if settings.model.use_peft:
            raise CliError(
                f"model_name_or_path={name} is an adapter already: leave use_peft out to go on training it, or merge it "
                "first with `sparsepo merge`."
            )
        refuse_quantisation(quantised, config)
        given = {} if quantised is None else {"quantization_config": quantised}
        model, quantised = load_adapter(name, kwargs | given, trainable=True), None
        config.model_init_kwargs = None
    else:
        config.model_init_kwargs = kwargs
    reference = settings.own.ref_model_name_or_path
    return SparsePOTrainer(
        model=model,
        ref_model=None if reference is None else load_model(reference, kwargs),
        args=config,
        train_dataset=sets.train,
        eval_dataset=sets.evaluation,
        processing_class=tokenizer,
        quantization_config=quantised,
        peft_config=adapter_config(settings.model),
    )


def _refuse_stopped(trainer: Any) -> None:
    """A run that the health monitor ended has no result to evaluate and save: say why, and where it can be resumed."""
    monitor = trainer.mask_monitor
    if monitor is None or monitor.stopped is None:
        return
    folder, step = trainer.args.output_dir, monitor.stopped["step"]
    trainer.end()
    raise CliError(
        f"mask_on_failure=stop ended training at step {step}: {monitor.stopped['reason']}\n"
        f"The run is in {folder}/checkpoint-{step}, the findings are in {folder}/mask_health.json; "
        "--resume_from_checkpoint last goes on with it."
    )


def _finish(
    trainer: Any, settings: TrainSettings, sets: Any, arguments: list[str], console: Any, seconds: float
) -> None:
    """Evaluate, save, summarise, push."""
    from sparsepo.data.content import announce_content
    from sparsepo.training.trl_bridge import versions

    from .content_flags import content_filter_of
    from .pages import example_pairs, write_report
    from .run_folder import SUMMARY, command_line, write_summary
    from .tables import final_evaluation, last_logged, metrics_table, say

    config, words = settings.config, content_filter_of(settings.own)
    columns = {"training (last logged)": last_logged(trainer.state.log_history)}
    if sets.evaluation is not None:
        columns["evaluation"] = final_evaluation(trainer)
    trainer.save_model(config.output_dir)
    trainer.save_state()
    if settings.script.dataset_streaming:  # what was read by now
        for report in sets.reports:
            announce_content(report, (), words)
    records = example_pairs(trainer) if settings.own.report and settings.own.inspect_pairs else []
    if trainer.is_world_process_zero():
        trainer.create_model_card(model_name=config.hub_model_id, dataset_name=settings.script.dataset_name)
        summary = write_summary(
            config.output_dir,
            {
                "command": command_line("train", arguments),
                "metrics": columns,
                "steps": trainer.state.global_step,
                "seconds": round(seconds, 1),
                "model": settings.model.model_name_or_path,
                "reference": settings.own.ref_model_name_or_path,
                "objective": {"name": trainer.objective.name, **trainer.objective.settings()},
                "mask": None if trainer.masker is None else {"kind": trainer.masker.kind, **trainer.masker.settings()},
                "data": [report.to_dict() for report in sets.reports],
                "versions": versions(),
                "settings": config.to_dict(),
                "given": sorted(settings.given),
            },
        )
        if settings.own.report:
            write_report(trainer, config.output_dir, summary, records, words)
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=settings.script.dataset_name)
    if console is not None:
        for report in sets.reports if settings.script.dataset_streaming else ():
            report.print(console)
        console.print(metrics_table(f"{trainer.objective.name}: {trainer.state.global_step} steps", columns))
        say(console, f"Saved in {config.output_dir}; all numbers and settings in {config.output_dir}/{SUMMARY}")
        for file in ("report.html", "masks.html"):
            if (Path(config.output_dir) / file).is_file():
                say(console, f"See {config.output_dir}/{file}")
    trainer.end()
