"""Entry of the ``sparsepo`` command: finds the subcommand and turns exceptions into exit statuses."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from sparsepo.redaction import redacted

from .base import INTERRUPTED, RUN_ERROR, USAGE_ERROR, CliError, CommandParser, suggest

# name → what `sparsepo --help` says. Each is a module of this folder with `add_parser(subparsers)`.
COMMANDS = {
    "demo": "a small offline run from nothing to a trained model, in a few minutes",
    "train": "train on preference pairs: SparsePO, MaPO, TDPO, DPO, SimPO, DPOP",
    "sft": "supervised fine-tuning, or a small model and its tokenizer from your own texts",
    "evaluate": "all training metrics of a saved model on held-out pairs",
    "code": "pass@k on HumanEval and MBPP, programs run in a sandbox",
    "inspect": "what the masks chose, token by token: terminal, web page, table",
    "frontier": "reward against KL of runs, checkpoint by checkpoint, at matched KL",
    "reward-model": "train a small reward model: labelled texts, scored completions, or preference pairs",
    "summaries": "ROUGE, BERTScore, diversity and faithfulness of summaries, of models or files",
    "reasoning": "Open LLM Leaderboard tasks with lm-eval, normalised, before and after training",
    "humanrank": "HumanRankEval: does a model rank answers as people voted?",
    "merge": "merge a LoRA adapter into its base model, the mask kept",
    "experiment": "a task of the paper, from data to table and plot, at any size",
    "data": "check preference data; sample completions; make pairs from scored ones",
    "judge": "win rate of answers, by a language model or a reward model",
    "plan": "memory, time and disk of a run before it is started, and what to change when it does not fit",
    "doctor": "versions, devices, what is missing and what that disables",
}
# Commands of a command; a folder of that name in the place of a model is written ./compare
SUBCOMMANDS = {"inspect": ("compare", "transfer", "robustness")}
# Their flags are TRL's dataclasses, which take seconds to import: they read their arguments themselves.
OWN_PARSING = ("train", "sft")

_DESCRIPTION = "Token-level preference alignment for any Hugging Face causal language model."
_EPILOG = """a first run:
  sparsepo demo
a real one:
  sparsepo train --config recipes/quickstart.yaml --model_name_or_path MODEL --dataset_name PAIRS.jsonl --output_dir OUT
  sparsepo evaluate OUT HELD_OUT.jsonl

`sparsepo COMMAND --help` explains a command. SPARSEPO_DEBUG=1 or --debug shows tracebacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        Exit status: 0 done, 1 a problem with data, settings or files, 2 wrong usage, 130 interrupted,
        143 ended by SIGTERM (train: after a checkpoint).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--debug"]:
        os.environ["SPARSEPO_DEBUG"] = "1"
        arguments = arguments[1:]
    name = next((item for item in arguments if not item.startswith("-")), None)
    prog = f"sparsepo {name}" if name in COMMANDS else "sparsepo"
    try:
        return _dispatch(arguments)
    except SystemExit as error:
        return _status(error)
    except KeyboardInterrupt as error:
        print(f"\n{prog}: interrupted{f' ({error})' if str(error) else ''}", file=sys.stderr)
        return int(getattr(error, "status", INTERRUPTED))
    except BrokenPipeError:
        # the reader of our output (head, less) has gone; keep Python from complaining when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_ERROR
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise  # a bug, or a device's: whoever looks into it needs the traceback
        return _report(prog, CliError(f"{error} (lower per_device_train_batch_size or max_length, or use LoRA)"))
    except (CliError, ValueError, TypeError, OSError, ImportError, OverflowError) as error:
        return _report(prog, error)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        return _top_level(arguments)
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(
            f"sparsepo: error: unknown command {name!r}{suggest(name, COMMANDS)}\nSee sparsepo --help", file=sys.stderr
        )
        return USAGE_ERROR
    if rest and rest[0] in SUBCOMMANDS.get(name, ()):
        name, arguments = f"{name} {rest[0]}", [f"{name} {rest[0]}", *rest[1:]]
    module = importlib.import_module(f"sparsepo.cli.{name.replace(' ', '_').replace('-', '_')}")
    if name in OWN_PARSING:
        run: Callable[[list[str]], int] = module.run
        return run(rest)
    parser = CommandParser(prog="sparsepo")
    module.add_parser(parser.add_subparsers(dest="command", required=True))
    namespace = parser.parse_args(arguments)
    return int(namespace.func(namespace) or 0)


def _top_level(arguments: list[str]) -> int:
    parser = CommandParser(
        prog="sparsepo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_formatter(),
        usage="sparsepo COMMAND …",
    )
    parser.add_argument("--version", action="store_true", help="versions of sparsepo and of what it stands on")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (before the command)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    namespace = parser.parse_args(arguments)
    if namespace.version:
        print(version_line())
    else:
        parser.print_help()
    return 0


def _formatter() -> type:
    import argparse

    return argparse.RawDescriptionHelpFormatter


def version_line() -> str:
    """Versions of sparsepo, TRL, transformers, torch and Python, read without importing them."""
    import importlib.metadata
    import platform

    from sparsepo import __version__

    parts = []
    for library in ("trl", "transformers", "torch"):
        try:
            parts.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{library} not installed")
    return f"sparsepo {__version__} ({', '.join(parts)}, Python {platform.python_version()})"


def _status(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return RUN_ERROR


def _report(prog: str, error: Exception) -> int:
    if os.environ.get("SPARSEPO_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
        return RUN_ERROR
    # Messages of our own may span lines on purpose (lists of accepted formats); a traceback never helps a user here.
    message = str(error).strip() or type(error).__name__
    print(redacted(f"{prog}: error: {message}").encode(errors="backslashreplace").decode(), file=sys.stderr)
    return RUN_ERROR


if __name__ == "__main__":
    raise SystemExit(main())
