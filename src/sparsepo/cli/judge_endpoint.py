"""``sparsepo judge --endpoint``: forecast, asking, verdicts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .base import CliError
from .judge import default_output, request_settings
from .judge_output import check_identity, finish
from .tables import say, text_table

LEDGER = "account.sqlite"


def judge(args: argparse.Namespace, console: Any, whole: Any, joined: Any, names: list[str]) -> int:
    """Ask the endpoint and report. Returns 0, or 1 where a cap left something unasked."""
    from sparsepo.evaluation.judge import Ledger, Manners, ask_all, forecast, request_key, requests_of, verdicts_of

    template, endpoint, key_from = _template(args), *_endpoint(args)
    manners = Manners(parallel=args.parallel, retries=args.retries, max_wait=args.max_wait)
    prices, settings = _prices(args), request_settings(args)
    judge = {
        "kind": "language model",
        "model": args.judge_model,
        "endpoint": endpoint.url,
        "source": endpoint.source,
        "settings": settings,
        "template": template.to_json(),
        "prices": None if prices is None else {"in": prices.sent, "out": prices.answered},
    }
    identity = None if args.output is None else check_identity(args, judge, whole, names)
    bodies, keys = requests_of(joined.comparisons, template, args.judge_model, settings, endpoint.source)
    with _cache(args) as cache:
        older = cache.adopt({key: request_key(body) for key, body in bodies.items()}, dry_run=True)
        if older:
            say(
                console,
                f"{len(older):,} answers were kept by a version that did not write down the endpoint: they are taken as "
                f"those of {endpoint.source}. --cache FILE with a new file asks anew.",
            )
        expected = forecast(bodies, cache.known(bodies) | older, template, prices)
        _show_forecast(console, joined, expected, prices)
        if args.dry_run:
            return 0
        _say_key(console, endpoint, key_from)
        folder = default_output(args)
        assert folder is not None  # checked with the flags
        assert identity is not None
        folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(folder / LEDGER, prices, args.max_cost, args.max_requests)
        try:
            with _progress(console) as shown:
                asked = ask_all(bodies, cache, ledger, endpoint, manners, shown)
        except Exception as error:
            if type(error).__name__ != "JudgeError":
                raise
            raise CliError(f"{error}\n{_kept(cache, bodies)}") from None
        verdicts = verdicts_of(joined.comparisons, keys, template, cache, asked)
        spent = ledger.summary()
        ledger.close()
    asking: dict[str, Any] = {"requests": asked.total, "cached": asked.cached, "answered": asked.answered}
    asking["adopted"] = asked.adopted
    asking |= {"failed": len(asked.failed), "retried": dict(asked.retried.most_common())}
    return finish(args, console, verdicts, judge, names, identity, asked.stopped, {"asking": asking, "spent": spent})


def _template(args: argparse.Namespace) -> Any:
    from sparsepo.evaluation.judge import load_template, template_names

    if args.judge_model is None:
        raise CliError("--endpoint needs --judge_model NAME, the endpoint's name of the model.")
    if args.template is None:
        known = "\n".join(f"  {name:<13} {load_template(name).about}" for name in template_names())
        raise CliError(f"--endpoint needs --template, a YAML file or one of\n{known}")
    return load_template(args.template)


def _endpoint(args: argparse.Namespace) -> tuple[Any, str | None]:
    from importlib.util import find_spec

    from sparsepo.evaluation.judge import Endpoint, key_from_environment

    if find_spec("openai") is None:
        raise CliError("--endpoint needs the openai package: pip install 'sparsepo[judge]'.")
    key, variable = key_from_environment()
    return Endpoint(args.endpoint, timeout=args.timeout, key=key, name=args.endpoint_name), variable


def _prices(args: argparse.Namespace) -> Any:
    from sparsepo.evaluation.judge import Prices

    given = [args.price_in is not None, args.price_out is not None]
    if any(given) and not all(given):
        raise CliError("Give both --price_in and --price_out, or neither.")
    if args.max_cost is not None and not all(given):
        raise CliError("--max_cost needs the prices of a million tokens: --price_in and --price_out.")
    return Prices(args.price_in, args.price_out) if all(given) else None


@contextmanager
def _cache(args: argparse.Namespace) -> Iterator[Any]:
    """The answers; a dry run makes no file."""
    from sparsepo.evaluation.judge import AnswerCache, default_cache

    path = Path(args.cache).expanduser() if args.cache is not None else default_cache()
    if path.is_dir():
        raise CliError(f"--cache {args.cache} is a folder; name a file.")
    cache = AnswerCache(":memory:" if args.dry_run and not path.exists() else path)
    try:
        yield cache
    finally:
        cache.close()


def _show_forecast(console: Any, joined: Any, expected: dict[str, Any], prices: Any) -> None:
    rows = [
        ["comparisons", f"{len(joined.comparisons):,} of {joined.prompts:,} prompts"],
        ["requests (both orders)", f"{expected['requests']:,}"],
        ["answered before", f"{expected['cached']:,}"],
        ["to ask", f"{expected['to_ask']:,}"],
    ]
    for name, own in (("about", expected["about"]), ("at most, without retries", expected["at_most"])):
        if own is None:
            rows.append([f"tokens, {name}", "unknown: no longest answer is set"])
            continue
        rows.append([f"tokens, {name}", f"{own['tokens_in']:,} sent, {own['tokens_out']:,} answered"])
        if prices is not None:
            rows.append([f"cost, {name}", f"{own['cost']:.4g}"])
    console.print(text_table("to be asked", ["", ""], rows))


def _say_key(console: Any, endpoint: Any, variable: str | None) -> None:
    say(console, f"key from {variable}" if variable is not None else "no key (SPARSEPO_API_KEY is not set)")
    if endpoint.sends_key_in_the_clear:
        say(console, f"warning: {endpoint.url} is not encrypted: anyone on the way can read the key; use https")


@contextmanager
def _progress(console: Any) -> Iterator[Callable[[Any], None]]:
    """A bar on terminals."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    more = TextColumn("{task.fields[more]}")
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), more)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("asking", total=None, more="")

        def show(asked: Any) -> None:
            more = f"{asked.cached:,} known, {asked.retried.total():,} retries, {len(asked.failed):,} failed"
            done = asked.cached + asked.answered + len(asked.failed)
            bar.update(task, total=asked.total, completed=done, more=more)

        yield show


def _kept(cache: Any, bodies: Any) -> str:
    count = len(cache.known(bodies))
    return f"{count:,} of {len(bodies):,} answers are kept; the same command goes on from there."
