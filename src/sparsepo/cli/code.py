"""``sparsepo code``: pass@k of a model, or of samples, on HumanEval or MBPP."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .base import CliError
from .execution_flags import add_execution_flags, executor_of
from .loading_flags import add_loading_flags

_ABOUT = """Sample solutions of HumanEval's or MBPP's problems, run each with its problem's tests in a sandbox, and estimate
pass@k without bias. The output folder keeps samples and results as they come: the same command goes on after an
interruption."""
# flags that only sampling reads → what they are without being given
_SAMPLING = {
    "n": 20,
    "temperature": 0.8,
    "top_p": 1.0,
    "max_new_tokens": 512,
    "seed": 0,
    "batch_size": 32,
    "dtype": "float32",
    "use_cpu": False,
    "trust_remote_code": False,
}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``code``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "code", help="pass@k on HumanEval and MBPP, programs run in a sandbox", description=_ABOUT
    )
    parser.add_argument("model", nargs="?", help="folder of a model or adapter, or hub id")
    parser.add_argument("--samples", metavar="FILE", help="instead: score these (rows of task_id and completion)")
    parser.add_argument("--benchmark", required=True, choices=("humaneval", "mbpp"))
    parser.add_argument("--data", metavar="FILE", help="its problems (.jsonl, .json, .parquet; default: from the hub)")
    parser.add_argument(
        "--prompt",
        choices=("few_shot", "docstring", "task"),
        help="of MBPP: three solved problems before it (default), task and tests as a docstring, or task and first test",
    )
    parser.add_argument("--split", choices=("test", "validation", "train", "all"), help="of MBPP (default: test)")
    parser.add_argument("--limit", type=int, help="only the first problems")
    parser.add_argument("--k", type=int, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for samples, results and summary")
    parser.add_argument("--overwrite", action="store_true", help="begin anew what DIR holds")
    how = parser.add_argument_group("how solutions are drawn (with a model)")
    how.add_argument("--n", type=int, help="samples a problem (default: 20)")
    how.add_argument("--temperature", type=float, help="(default: 0.8)")
    how.add_argument("--top_p", type=float, help="nucleus (default: 1, every token)")
    how.add_argument("--max_new_tokens", type=int, help="longest solution (default: 512)")
    how.add_argument("--seed", type=int, help="of the draws (default: 0)")
    how.add_argument("--batch_size", type=int, help="solutions generated together (default: 32)")
    add_loading_flags(how, "float32", dtype_unset=True, flags_unset=True)
    add_execution_flags(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Sample, run, estimate. Returns 0."""
    from rich.console import Console

    from sparsepo.evaluation.code import load_problems, read_samples
    from sparsepo.evaluation.code.pass_at_k import check_ks

    from .progress import quiet_loading
    from .tables import say

    _check(args)
    quiet_loading()
    console = Console()
    if args.samples is None:
        check_ks(args.k, args.n)
    executor = executor_of(args, console)
    asks = {"prompt": args.prompt or "few_shot", "split": args.split or "test"} if args.benchmark == "mbpp" else {}
    problems = load_problems(args.benchmark, args.data, **asks)[: args.limit]
    folder = _claim(args, asks)
    say(console, f"{args.benchmark}: {len(problems)} problems")
    if args.samples is not None:
        samples = read_samples(args.samples, problems)
        check_ks(args.k, min(map(len, samples.values())))
    else:
        samples = _sampled(args, problems, folder, console)
    score = _scored(args, problems, samples, executor, folder, console)
    summary = {"benchmark": args.benchmark, "settings": _settings(args, asks), **score.to_json()}
    summary["sandbox"] = {"layers": list(executor.isolation.layers), "limits": executor.limits.to_json()}
    _write(folder / "summary.json", summary)
    _show(args, score, console)
    say(console, f"samples, results and summary are in {folder}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.samples is None):
        raise CliError("Give a model, or --samples FILE, and not both.")
    for name in ("prompt", "split"):
        if args.benchmark != "mbpp" and getattr(args, name) is not None:
            raise CliError(f"--{name} is of mbpp; {args.benchmark} has one.")
    if args.limit is not None and args.limit < 1:
        raise CliError(f"--limit {args.limit} must be at least 1.")
    for name, default in _SAMPLING.items():
        if args.samples is not None and getattr(args, name) is not None:
            raise CliError(f"--{name} has no effect with --samples, whose solutions are drawn already.")
        if getattr(args, name) is None:
            setattr(args, name, default)


def _settings(args: argparse.Namespace, asks: dict[str, str]) -> dict[str, Any]:
    """What decides samples."""
    from hashlib import blake2b

    from .kept import model_digest

    chosen = (
        {}
        if args.samples
        else {name: getattr(args, name) for name in _SAMPLING if name not in ("batch_size", "use_cpu")}
    )
    files = {}
    for name in ("data", "samples"):
        path = getattr(args, name)
        if path is not None:
            files[name] = {"file": path, "digest": blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()}
    if args.model is not None:
        files["model_files"] = {"file": args.model, "digest": model_digest(args.model)}
    return {"benchmark": args.benchmark, "model": args.model, **asks, "limit": args.limit, **chosen, **files}


def _claim(args: argparse.Namespace, asks: dict[str, str]) -> Path:
    """The output folder; what it holds must be of the same settings."""
    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise CliError(f"--output {folder} is a file; give a folder.")
    settings, place = _settings(args, asks), folder / "settings.json"
    if args.overwrite:
        for name in ("settings.json", "samples.jsonl", "samples.jsonl.partial", "results.jsonl", "summary.json"):
            (folder / name).unlink(missing_ok=True)
    if place.is_file():
        old = json.loads(place.read_text(encoding="utf-8"))
        changed = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
        if changed:
            raise CliError(
                f"--output {folder} holds samples of other settings ({', '.join(changed)}); give another folder, or "
                "--overwrite."
            )
    folder.mkdir(parents=True, exist_ok=True)
    _write(place, settings)
    return folder


def _sampled(args: argparse.Namespace, problems: list[Any], folder: Path, console: Any) -> dict[str, list[str]]:
    from rich.progress import Progress

    from sparsepo.data.reading import read_rows
    from sparsepo.evaluation.code import CodeSamplingSettings
    from sparsepo.evaluation.sampling import LocalSampler, sample_to_file

    from .models import load_for_sampling, load_tokenizer

    path = folder / "samples.jsonl"
    if path.is_file():
        rows = [row for _, row in read_rows(path)]
    else:
        settings = CodeSamplingSettings(
            args.n, args.max_new_tokens, args.temperature, args.top_p, args.seed, stop=problems[0].stop
        )
        model = load_for_sampling(args.model, args.dtype, args.use_cpu, args.trust_remote_code)
        tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
        sampler = LocalSampler(model, tokenizer, args.model, settings, args.batch_size)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("sampling", total=len(problems))
            prompts = [problem.prompt for problem in problems]
            rows = sample_to_file(
                sampler, prompts, None, path, progress=lambda done, _: bar.update(task, completed=done)
            )
    samples: dict[str, list[str]] = {problem.task_id: [] for problem in problems}
    for place, row in enumerate(rows):
        samples[problems[place // args.n].task_id].append(row["text"])
    return samples


def _scored(
    args: argparse.Namespace, problems: list[Any], samples: Any, executor: Any, folder: Path, console: Any
) -> Any:
    from rich.progress import Progress

    from sparsepo.evaluation.code import score_samples

    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("running programs", total=sum(map(len, samples.values())))
        return score_samples(
            problems,
            samples,
            args.k,
            executor,
            keep=folder / "results.jsonl",
            progress=lambda done, _: bar.update(task, completed=done),
        )


def _show(args: argparse.Namespace, score: Any, console: Any) -> None:
    from .tables import say, text_table

    counts = [len(found) for found in score.outcomes.values()]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    title = f"{args.model or args.samples} on {args.benchmark}: {len(counts)} problems × {each} samples"
    rows = [(f"pass@{k}", f"{v:.1%}", f"{low:.1%} to {high:.1%}") for k, (v, low, high) in score.pass_at.items()]
    say(console, title)
    console.print(text_table("", ("", "estimate", "95 % interval"), rows))
    total = sum(counts)
    kinds = [(kind, f"{count:,}", f"{count / total:.1%}") for kind, count in score.kinds.items()]
    console.print(text_table("", ("outcome", "samples", "share"), kinds))


def _write(path: Path, content: Any) -> None:
    from sparsepo.data.writing import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
