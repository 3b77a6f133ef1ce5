"""``sparsepo reward-model``: a reward model from labelled texts, scored completions or preference pairs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .base import CliError
from .saved_runs import check_output_folder

_DESCRIPTION = """Trains a reward model and reports its accuracy on rows that it did not see. What FILES hold decides what is
learnt:

  texts in two folders, or two files named .pos and .neg (also zipped); rows with text and label
        a class; use it as --reward classifier:DIR
  scored completions (prompt, text, reward)
        the reward, by squared error; use it as --reward regression:DIR
  preference pairs (prompt, chosen, rejected), dialogue transcripts
        which answer is preferred (Bradley-Terry, TRL's RewardTrainer); use it as --reward regression:DIR

It starts from a model (--model), or from random weights with a tokenizer of its own (--init_from_config, as in sparsepo
sft). An interrupted training goes on from its last epoch when the same command is given again."""
_TARGETS = {"classes": "labelled texts", "scores": "scored completions", "pairs": "preference pairs"}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``reward-model``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "reward-model",
        help="train a small reward model: labelled texts, scored completions, or preference pairs",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="archives, folders or data files, of one kind")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the reward model")
    parser.add_argument("--overwrite", action="store_true", help="replace the reward model that is there")
    parser.add_argument("--model", help="start: folder or hub id of a language model or classifier")
    parser.add_argument("--init_from_config", help="start from random weights: gpt2-1m, llama-1m, … or a config.json")
    parser.add_argument("--vocab_size", type=int, help="with --init_from_config: of the tokenizer (default: 4096)")
    parser.add_argument("--held_out", type=float, default=0.1, help="share of rows for accuracy (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="(default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, help="(default: 2e-5 with --model, 5e-4 from random weights)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows a step (default: %(default)s)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--use_cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--trust_remote_code", action="store_true", help="for models with code of their own")
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Train and judge. Returns 0."""
    from rich.console import Console

    from sparsepo.evaluation.reward_training import RewardTraining, judge_reward, train_reward

    from .progress import ShortPrinter, quiet_loading
    from .tables import say

    _check(args)
    quiet_loading()
    console = Console()
    rate = args.learning_rate if args.learning_rate is not None else 5e-4 if args.init_from_config else 2e-5
    settings = RewardTraining(args.epochs, rate, args.batch_size, args.max_length, args.seed, args.use_cpu)
    rows, target = load_rewarded(args.files)
    train, held_out = split_rows(rows, target, args.held_out, args.seed)
    say(console, f"{_TARGETS[target]}: {len(train):,} to train on, {len(held_out):,} held out")
    model, tokenizer = _start(args, rows, target)
    size = sum(parameter.numel() for parameter in model.parameters())
    say(console, f"{model.config.model_type} of {size:,} parameters, {model.config.num_labels} output(s)")
    train_reward(model, tokenizer, train, target, args.output, settings, [ShortPrinter()])
    found = judge_reward(args.output, held_out, target, args.use_cpu)
    path = Path(args.output) / "reward_model.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"files": args.files, "held_out": found}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _say_found(found, target, args.output, console)
    return 0


def _check(args: argparse.Namespace) -> None:
    check_output_folder(args.output)
    if (args.model is None) == (args.init_from_config is None):
        raise CliError("Give --model, or --init_from_config for random weights, and not both.")
    if args.vocab_size is not None and args.init_from_config is None:
        raise CliError("--vocab_size has no effect without --init_from_config.")
    if not 0 < args.held_out < 1:
        raise CliError(f"--held_out {args.held_out} must lie between 0 and 1.")
    for file in args.files:
        if not Path(file).expanduser().exists():
            raise CliError(f"{file}: no such file or folder.")
    folder = Path(args.output).expanduser()
    if (folder / "config.json").is_file():
        if not args.overwrite:
            raise CliError(f"--output {args.output} holds a model: --overwrite replaces it, or give another folder.")
        if args.model is not None and Path(args.model).is_dir() and Path(args.model).samefile(folder):
            raise CliError(f"--output {args.output} is the model that training starts from; give another folder.")


def load_rewarded(files: list[str]) -> tuple[list[dict[str, Any]], Any]:
    """Rows of all files, and what they teach: ``classes``, ``scores`` or ``pairs``.

    Raises:
        CliError: files of several kinds, or rows that cannot be used.
    """
    from sparsepo.data.labelled import read_labelled

    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        labelled = read_labelled(file)
        if labelled is not None:
            rows = [{"text": text, "label": label} for text, label in dict.fromkeys(labelled)]
            found.setdefault("classes", []).extend(rows)
            continue
        target, rows = _of_data(file)
        found.setdefault(target, []).extend(rows)
    if len(found) > 1:
        raise CliError(f"The files hold {' and '.join(_TARGETS[kind] for kind in found)}; give files of one kind.")
    target, rows = next(iter(found.items()))
    return rows, target


def _of_data(file: str) -> tuple[str, list[dict[str, Any]]]:
    from sparsepo.data import check_preferences, format_of, load_preference_data
    from sparsepo.data.formats import PREFERENCE_KINDS, REWARD_NAMES, TEXT_NAMES, first_of

    loaded = load_preference_data(file, kinds=(*PREFERENCE_KINDS, "scored"))
    form = format_of(loaded, file)
    if form.conversational:
        raise CliError(f"{file} holds conversations; reward models are trained here on plain texts.")
    if form.kind == "scored":
        text, reward = first_of(TEXT_NAMES, form.columns), first_of(REWARD_NAMES, form.columns)
        assert text is not None
        assert reward is not None
        rows = [
            {"prompt": row["prompt"], "text": row[text], "reward": row[reward]}
            for row in loaded
            if isinstance(row["prompt"], str) and row[text] and row[reward] is not None
        ]
        return "scores", rows
    clean, _ = check_preferences(loaded, name=file)
    return "pairs", [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in clean]


def split_rows(rows: list[dict[str, Any]], target: str, share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Training and held-out rows: no prompt, and no text of a class, on both sides."""
    from sparsepo.data import split_by_prompt

    keyed = [{"prompt": row["text"] if target == "classes" else row["prompt"], "row": row} for row in rows]
    train, held_out = split_by_prompt(keyed, share, seed)
    return [row["row"] for row in train], [row["row"] for row in held_out]


def _start(args: argparse.Namespace, rows: list[dict[str, Any]], target: str) -> tuple[Any, Any]:
    """The classifier and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from .models import check_model_name, load_tokenizer
    from .small_models import model_from_config, train_tokenizer

    labels = sorted({row["label"] for row in rows}) if target == "classes" else ["reward"]
    names = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
    }
    torch.manual_seed(args.seed)
    if args.model is not None:
        name = check_model_name(args.model, "model")
        tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
        config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code, **names)
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head of other classes is replaced
            trust_remote_code=args.trust_remote_code,
        )
        return model, tokenizer
    texts = (str(row[key]) for row in rows for key in ("prompt", "text", "chosen", "rejected") if key in row)
    tokenizer = train_tokenizer(texts, args.vocab_size or 4096)
    config = model_from_config(args.init_from_config, tokenizer, args.seed).config
    for key, value in names.items():
        setattr(config, key, value)
    torch.manual_seed(args.seed)
    return AutoModelForSequenceClassification.from_config(config), tokenizer


def _say_found(found: dict[str, Any], target: str, output: str, console: Any) -> None:
    from .tables import say

    if found["accuracy"] is not None:
        what = "of classes" if target == "classes" else "of the order of two answers"
        say(
            console,
            f"held-out accuracy {what}: {found['accuracy']:.3f} [{found['low']:.3f}, {found['high']:.3f}] "
            f"({found['rows']:,} rows; by chance {found['chance']:.3f})",
        )
    if found.get("spearman") is not None:
        say(console, f"rank correlation with the rewards: {found['spearman']:.3f}")
    spec = f"classifier:{output}" if target == "classes" else f"regression:{output}"
    say(console, f"Saved in {output}; use it as --reward {spec}")
