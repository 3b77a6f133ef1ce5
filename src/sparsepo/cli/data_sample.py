"""``sparsepo data sample``: completions of prompts, from a model here or a server, scored, resumable."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .base import CliError
from .loading_flags import add_loading_flags
from .reward_flags import add_reward_flags, check_reward_flags, reward_of

_SAMPLE = """Sample completions of prompts from a model, or from a server that speaks OpenAI's protocol (vLLM), score them,
and write every one with its prompt, reward, seed and settings: the file that `sparsepo data pairs` makes pairs of. While it
runs, OUT.partial keeps what is done; the same command goes on from there after an interruption."""
_LOCAL_ONLY = ("batch_size", "max_prompt_length", "dtype", "use_cpu", "trust_remote_code", "tokenizer")
_SERVER_ONLY = ("server_model", "server_api", "server_parallel", "server_timeout", "server_retries")


def add_sample(commands: Any) -> None:
    """Register ``data sample``; the namespace's ``func`` runs it and returns the exit status."""
    parser = commands.add_parser(
        "sample", help="prompts → scored completions of a model or server", description=_SAMPLE, allow_abbrev=False
    )
    parser.add_argument("--model", help="folder of a model or adapter, or hub id")
    parser.add_argument(
        "--server", metavar="URL", help="instead: an OpenAI-compatible server, http://localhost:8000/v1"
    )
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="a .txt file (a prompt a line), or rows with a prompt: pairs, transcripts, scored completions",
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="scored file (.jsonl, .jsonl.gz, .parquet)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, and begin an unfinished one anew")
    parser.add_argument("--split", help="split of the prompts, as in 'test' or 'train[:200]'")
    parser.add_argument("--name", help="configuration of a hub data set")
    parser.add_argument("--data_dir", help="folder inside a hub data set")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="rename a column")
    parser.add_argument("--limit", type=int, help="only the first prompts")
    add_reward_flags(parser, required=False)
    how = parser.add_argument_group("how completions are drawn")
    how.add_argument("--n", type=int, default=8, help="completions a prompt (default: %(default)s)")
    how.add_argument("--max_new_tokens", type=int, default=64, help="longest completion (default: %(default)s)")
    how.add_argument("--temperature", type=float, default=1.0, help="(default: %(default)s)")
    how.add_argument("--top_p", type=float, default=1.0, help="nucleus (default: %(default)s, every token)")
    how.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    local = parser.add_argument_group("with --model")
    local.add_argument("--batch_size", type=int, help="completions generated together (default: 64)")
    local.add_argument("--max_prompt_length", type=int, help="keep only the last tokens of a prompt")
    local.add_argument("--tokenizer", help="tokenizer from elsewhere")
    add_loading_flags(local, "float32", dtype_unset=True)
    server = parser.add_argument_group("with --server (the key comes from SPARSEPO_API_KEY or OPENAI_API_KEY)")
    server.add_argument("--server_model", metavar="NAME", help="the server's name of the model")
    server.add_argument(
        "--server_api", choices=("auto", "completions", "chat"), help="auto: chat for conversations, else completions"
    )
    server.add_argument("--server_parallel", type=int, help="requests at a time (default: 8)")
    server.add_argument("--server_timeout", type=float, help="seconds of a request (default: 300)")
    server.add_argument("--server_retries", type=int, help="of a request that failed (default: 6)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Sample. Returns 0."""
    from rich.console import Console
    from rich.progress import Progress

    from sparsepo.data import load_prompts
    from sparsepo.data.writing import check_output
    from sparsepo.evaluation.sampling import sample_to_file

    from .data import renames_of
    from .kept import model_digest
    from .progress import quiet_loading
    from .tables import say

    _check(args)
    quiet_loading()
    check_output(Path(args.output), args.overwrite)
    console = Console()
    prompts, left_out = load_prompts(
        args.prompts,
        args.split,
        args.name,
        columns=renames_of(args.rename),
        data_dir=args.data_dir,
        limit=args.limit,
    )
    for what, count in left_out.items():
        say(console, f"{args.prompts}: {count:,} {what} left out")
    sampler = _sampler(args)
    reward = reward_of(args)
    say(console, f"{len(prompts):,} prompts × {args.n} completions of {sampler.model}")
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("prompts", total=len(prompts))
        rows = sample_to_file(
            sampler,
            prompts,
            reward,
            args.output,
            overwrite=args.overwrite,
            model_files=None if args.model is None else model_digest(args.model),
            progress=lambda done, _: bar.update(task, completed=done),
        )
    _summarise(rows, reward, args.output, console)
    return 0


def _check(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.server is None):
        raise CliError("Give --model, or --server with --server_model, and not both.")
    others, instead = (_SERVER_ONLY, "--server") if args.server is None else (_LOCAL_ONLY, "--model")
    for name in others:
        if getattr(args, name) not in (None, False):
            raise CliError(f"--{name} has no effect without {instead}.")
    if args.server is not None and args.server_model is None:
        raise CliError("--server needs --server_model, the server's name of the model.")
    check_reward_flags(args)


def _sampler(args: argparse.Namespace) -> Any:
    from sparsepo.evaluation.sampling import LocalSampler, SamplingSettings

    settings = SamplingSettings(
        args.n, args.max_new_tokens, args.temperature, args.top_p, args.seed, args.max_prompt_length
    )
    if args.server is not None:
        from sparsepo.evaluation.sampling_server import ServerSampler

        names = ("api", "parallel", "timeout", "retries")
        given = {name: value for name in names if (value := getattr(args, f"server_{name}")) is not None}
        return ServerSampler(args.server, args.server_model, settings, **given)
    from .models import load_for_sampling, load_tokenizer

    model = load_for_sampling(args.model, args.dtype or "float32", args.use_cpu, args.trust_remote_code)
    tokenizer = load_tokenizer(args.tokenizer or args.model, trust_remote_code=args.trust_remote_code)
    return LocalSampler(model, tokenizer, args.model, settings, 64 if args.batch_size is None else args.batch_size)


def _summarise(rows: list[dict[str, Any]], reward: Any, output: str, console: Any) -> None:
    import statistics

    from .tables import say, shown

    said = [f"wrote {len(rows):,} completions to {output}"]
    known = [row["finished"] for row in rows if row["finished"] is not None]
    if known:
        said.append(f"{sum(known) / len(known):.1%} ended by themselves")
    if reward is not None:
        values = [row["reward"] for row in rows]
        said.append(
            f"reward {shown(statistics.fmean(values))} on average, {shown(min(values))} to {shown(max(values))}"
        )
    say(console, "; ".join(said))
    for note in reward.notes() if reward is not None else ():
        say(console, note)
