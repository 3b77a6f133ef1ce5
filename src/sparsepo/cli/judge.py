"""``sparsepo judge``: which of two systems' answers are better, by a language model or a reward model."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from .base import CliError
from .content_flags import add_content_flags, content_filter_of
from .reward_flags import REWARD_KINDS as USAGES
from .saved_runs import check_output_folder

_DESCRIPTION = """Win rate of the answers in CANDIDATE against those in BASELINE, joined by their prompts; or of the two
answers in each row of one file. The judge is a language model behind an OpenAI-compatible endpoint, asked in both orders
(--endpoint, --judge_model, --template), or a reward model here (--reward_model). Answers are kept and never paid for twice:
the same command goes on where it stopped."""
_EPILOG = """examples:
  sparsepo judge sparsepo.jsonl dpo.jsonl --endpoint https://api.openai.com/v1 --judge_model gpt-4o-mini \\
      --template hh_helpful --price_in 0.15 --price_out 0.6 --max_cost 2 --output judged --dry_run
  sparsepo judge sparsepo.jsonl dpo.jsonl --endpoint http://localhost:8000/v1 --judge_model Qwen/Qwen3-32B \\
      --template tldr_concise --parallel 16 --output judged
  sparsepo judge sparsepo.jsonl dpo.jsonl --reward_model REWARD_MODEL --output judged

The key is read from SPARSEPO_API_KEY, else OPENAI_API_KEY; set it empty for servers that need none."""
# flag → its default; None here means: unset. Each has an effect with an endpoint only.
_ENDPOINT_ONLY: dict[str, Any] = {
    "judge_model": None,
    "endpoint_name": None,
    "template": None,
    "temperature": 0.0,
    "max_tokens": 512,
    "request": None,
    "cache": None,
    "price_in": None,
    "price_out": None,
    "max_cost": None,
    "max_requests": None,
    "parallel": 4,
    "timeout": 120.0,
    "retries": 6,
    "max_wait": 300.0,
}
PROGRAMS = "code-tests"  # runs what is judged: `sparsepo code` does that
REWARD_KINDS = tuple(kind for usage in USAGES if (kind := usage.partition(":")[0]) != PROGRAMS)
_REWARD_ONLY: dict[str, Any] = {"tie_margin": 0.0, "reward_batch_size": None, "reward_max_length": None}
_MODEL_OPTIONS = ("reward_batch_size", "reward_max_length")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``judge``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "judge",
        help="win rate of answers, by a language model or a reward model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("candidate", metavar="CANDIDATE", help="file of prompt and response (or text, completion)")
    parser.add_argument(
        "baseline",
        metavar="BASELINE",
        nargs="?",
        help="the same of the other system; none: CANDIDATE holds both answers",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="judge.json, verdicts.jsonl, judge.html, plots/, the account"
    )
    parser.add_argument(
        "--names", nargs=2, metavar=("CANDIDATE", "BASELINE"), help="what to call them (default: the files)"
    )
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--dry_run", action="store_true", help="say what would be asked and what it costs; ask nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace another judging in the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--examples", type=int, default=6, help="of each kind on the page (default: 6); 0: no texts on it"
    )
    add_content_flags(parser)
    _add_endpoint(parser)
    _add_reward(parser)
    parser.set_defaults(func=run)
    return parser


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a language model as judge")

    def add(name: str, text: str, kind: Any = None, **more: Any) -> None:
        default = _ENDPOINT_ONLY[name]
        known = "" if default is None else f" (default: {default:g})"
        group.add_argument(f"--{name}", type=kind, help=text + known, **more)

    group.add_argument(
        "--endpoint", metavar="URL", help="of an OpenAI-compatible API, such as http://localhost:8000/v1"
    )
    add("judge_model", "the endpoint's name of the model", metavar="NAME")
    add(
        "endpoint_name",
        "what the endpoint's answers are kept under, for a server whose address changes (default: the address)",
        metavar="NAME",
    )
    add("template", "hh_helpful, hh_harmless, tldr, tldr_concise, alpaca, mt_bench, or a YAML file (docs/judge.md)")
    add("temperature", "of the judge", float)
    add("max_tokens", "longest answer of the judge", int)
    add("request", "more settings of a request, such as '{\"seed\": 1}'; null takes one away", metavar="JSON")
    add("cache", "file of answers (default: judge.sqlite in the user's cache folder)", metavar="FILE")
    add("price_in", "of a million tokens sent", float)
    add("price_out", "of a million tokens answered", float)
    add("max_cost", "stop before all runs into the folder have cost more", float)
    add("max_requests", "stop before more requests were sent, retries included", int)
    add("parallel", "requests at once", int)
    add("timeout", "seconds for a whole answer", float)
    add("retries", "of a request that failed", int)
    add("max_wait", "longest wait in seconds that the endpoint may ask for", float)


def _add_reward(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a reward model as judge, offline")
    group.add_argument(
        "--reward_model",
        metavar="ID_OR_PATH",
        help="folder or hub id of a sequence classifier; or a reward such as classifier:MODEL:LABEL, regression:MODEL",
    )
    group.add_argument("--tie_margin", type=float, help="rewards at most so far apart are a tie (default: 0)")
    group.add_argument("--reward_batch_size", type=int, metavar="N", help="texts scored together (default: 32)")
    group.add_argument(
        "--reward_max_length", type=int, metavar="N", help="tokens of a text; longer ones are cut at the front"
    )


def run(args: argparse.Namespace) -> int:
    """Judge, or say what judging would take. Returns 0, or 1 where a cap left something unasked."""
    from rich.console import Console

    from sparsepo.data.content import shown_text

    from .judge_inputs import names_of, read_comparisons
    from .tables import say

    _check(args)
    console = Console()
    joined, remarks = read_comparisons(args.candidate, args.baseline)
    names = names_of(args.names, args.candidate, args.baseline)
    words = content_filter_of(args)
    for remark in [*remarks, *joined.complaints(names)]:
        say(console, shown_text(remark, words))
    whole = joined
    if args.limit is not None:
        joined = joined.first(args.limit)
    if args.endpoint is not None:
        from .judge_endpoint import judge

        return judge(args, console, whole, joined, names)
    return _by_rewards(args, console, whole, joined, names)


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is read, and fill in defaults."""
    if (args.endpoint is None) == (args.reward_model is None):
        raise CliError("Give one judge: --endpoint URL with --judge_model NAME, or --reward_model ID_OR_PATH.")
    if args.output is None and not args.dry_run:
        raise CliError("--output FOLDER says where the results go (with --dry_run it may be left out).")
    check_output_folder(args.output)
    unused, used = (_REWARD_ONLY, _ENDPOINT_ONLY) if args.endpoint is not None else (_ENDPOINT_ONLY, _REWARD_ONLY)
    for name in unused:
        if getattr(args, name) is not None:
            other = "--reward_model" if args.endpoint is not None else "--endpoint"
            raise CliError(f"--{name} has no effect without {other}.")
    if args.endpoint is None and args.dry_run:
        raise CliError("--dry_run has no effect with --reward_model: nothing is paid for.")
    for name, default in used.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    for name, least in (("limit", 1), ("resamples", 1), ("examples", 0), ("max_tokens", 1), ("max_requests", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise CliError(f"--{name} {value}: must be at least {least}.")
    for name in ("temperature", "price_in", "price_out", "max_cost", "timeout", "tie_margin"):
        value = getattr(args, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise CliError(f"--{name} {value}: must be a number of at least zero.")


# ---- by a reward model ----


def _by_rewards(args: argparse.Namespace, console: Any, whole: Any, joined: Any, names: list[str]) -> int:
    from sparsepo.evaluation.judge import judge_by_rewards
    from sparsepo.evaluation.rewards import get_reward

    from .judge_output import check_identity, finish

    spec, options = reward_spec(args.reward_model)
    judge = {"kind": "reward model", "model": args.reward_model, "reward": spec, "tie_margin": args.tie_margin}
    identity = check_identity(args, judge, whole, names)
    for name in _MODEL_OPTIONS:
        if (value := getattr(args, name)) is None:
            continue
        if not spec.startswith(("classifier:", "regression:")):
            raise CliError(f"--{name} has no effect with {spec}.")
        options[name.removeprefix("reward_")] = value
    reward = get_reward(spec, **options)
    verdicts = judge_by_rewards(joined.comparisons, _with_progress(reward, console), args.tie_margin)
    judge["notes"] = reward.notes()
    return finish(args, console, verdicts, judge, names, identity)


def reward_spec(name: str) -> tuple[str, dict[str, Any]]:
    """The reward that ``--reward_model`` names, and its options: a model of one output by its number, another by its logit.

    Raises:
        CliError: no such folder, or a folder without a model.
    """
    kind = name.partition(":")[0]
    if kind == PROGRAMS:
        raise CliError(f"--reward_model {name}: programs are judged by `sparsepo code`, which runs them in a sandbox.")
    if kind not in REWARD_KINDS:
        from transformers import AutoConfig

        from .models import check_model_name

        place = check_model_name(name, "reward_model")
        try:
            config = AutoConfig.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise CliError(f"--reward_model {name} could not be loaded: {' '.join(str(error).split())}") from error
        kind = "regression" if config.num_labels == 1 else "classifier"
        name = f"{kind}:{place}"
    # a probability is 1 for any two answers that are both good enough: their logits differ
    return name, {"output": "logit"} if kind == "classifier" else {}


def _with_progress(reward: Any, console: Any) -> Any:
    from rich.progress import track

    def score(prompts: Any, texts: Any) -> list[float]:
        starts = range(0, len(texts), 256)
        found: list[float] = []
        for start in track(starts, "answers scored", console=console, disable=not console.is_terminal):
            found += reward(prompts[start : start + 256], texts[start : start + 256])
        return found

    return score


def request_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling settings of a request: flags, then ``--request``.

    Raises:
        CliError: ``--request`` is no JSON object.
        ValueError: it sets what is not free.
    """
    from sparsepo.evaluation.judge import settings_with

    changes: Any = {}
    if args.request is not None:
        try:
            changes = json.loads(args.request)
        except ValueError as error:
            raise CliError(f"--request {args.request!r} is not valid JSON ({error}).") from None
        if not isinstance(changes, dict):
            raise CliError(f"--request {args.request!r}: must be a JSON object, such as '{{\"seed\": 1}}'.")
    temperature = int(args.temperature) if args.temperature == int(args.temperature) else args.temperature
    return settings_with({"temperature": temperature, "max_tokens": args.max_tokens, **changes})


def default_output(args: argparse.Namespace) -> Path | None:
    """The output folder; None where none is given."""
    return None if args.output is None else Path(args.output).expanduser()
