"""The code task: problems with tests, pairs of passing and failing programs, and rewards by running what a model wrote."""

from __future__ import annotations

import ast
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.mutations import Mutant, choose, mutants_of
from sparsepo.data.reading import read_rows

from .jobs import Job, Row, read_lines, write_lines

_TRIES = 3  # mutants that are tried for each that is wanted: some change nothing
# where a completion leaves the program that was asked for
_STOPS = ("\nassert ", "\nprint(", '\n"""', "\nif __name__", "\n#", "<|endoftext|>")


def prepare_problems(job: Job) -> Row:
    """Problems with prompt, solution and tests: training and held-out ones, texts for SFT, prompts to judge on."""
    own = job.settings
    source = job.stage.sources["rows"]
    if own.get("held_out_split") is not None:
        train, held_out = (
            _problems(source, own.get("train_split") or "train"),
            _problems(source, own["held_out_split"]),
        )
    else:
        rows = _problems(source, own.get("train_split"))
        random.Random(own["seed"]).shuffle(rows)
        count = max(1, round(own["eval_fraction"] * len(rows)))
        train, held_out = rows[count:], rows[:count]
    train, held_out = train[: own.get("train_prompts")], held_out[: own.get("held_out_prompts")]
    if not train or not held_out:
        raise ValueError(
            f"{len(train)} training and {len(held_out)} held-out problems; give more, or another eval_fraction."
        )
    texts = [{"prompt": row["prompt"], "completion": row["reference"]} for row in train]
    write_lines(job.folder / "train.jsonl", train)
    write_lines(job.folder / "held_out.jsonl", held_out)
    write_lines(job.folder / "prompts.jsonl", held_out)
    return {
        "kind": "problems",
        "train": len(train),
        "held_out": len(held_out),
        "sft_texts": write_lines(job.folder / "sft.jsonl", texts if own["sft_texts"] != "none" else []),
        "summary": f"{len(train):,} training and {len(held_out):,} held-out problems",
    }


def _problems(sources: Sequence[str], split: str | None) -> list[Row]:
    """Problems as MBPP has them, of either of its editions: text (or prompt), code, test_list, setup or imports."""
    rows: list[Row] = []
    for source in sources:
        if Path(source).expanduser().is_file():
            rows += [row for _, row in read_rows(Path(source).expanduser())]
        else:
            from datasets import load_dataset

            rows += [dict(row) for row in load_dataset(source, split=split)]
    missing = [name for name in ("code", "test_list") if rows and name not in rows[0]]
    if not rows or missing or not ({"text", "prompt"} & set(rows[0])):
        raise ValueError(
            f"{', '.join(sources)} holds no problems with text (or prompt), code and test_list, as MBPP has them."
        )
    return [_problem(row) for row in rows]


def _problem(row: Row) -> Row:
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    tests = [test.strip() for test in row["test_list"]]
    text = (row.get("text") or row["prompt"]).strip()
    return {
        "task_id": row.get("task_id"),
        "prompt": f'"""\n{text}\n{tests[0]}\n"""\n',
        "reference": row["code"].replace("\r\n", "\n").strip() + "\n",
        "tests": tests,
        "setup": setup,
    }


def mutant_pairs(job: Job) -> Row:
    """Solutions against themselves with one small change; with ``check`` only those that pass and whose mutants fail."""
    own = job.settings
    counts: Counter[str] = Counter()
    found: dict[str, Any] = {}
    for part in ("train", "held_out"):
        rng = np.random.default_rng(own["seed"])
        rows = list(_mutants(job, part, rng, counts))
        if not rows:
            raise ValueError(f"No {part} pairs: no mutant of any of the problems could be used ({dict(counts)}).")
        random.Random(own["seed"]).shuffle(rows)
        found[part] = write_lines(job.folder / f"{part}.jsonl", rows[: own.get(f"{part}_pairs")])
    told = f"{found['train']:,} training and {found['held_out']:,} held-out pairs"
    if own["check"]:
        told += f"; {counts['solutions that fail']} solutions fail, {counts['mutants that pass']} mutants pass"
    return {**found, "checked": own["check"], "counts": dict(counts), "summary": told}


def _mutants(job: Job, part: str, rng: np.random.Generator, counts: Counter[str]) -> Iterator[Row]:
    own = job.settings
    test = tester(job) if own["check"] else None
    for problem in read_lines(job.inputs["data"] / f"{part}.jsonl"):
        counts["problems"] += 1
        if test is not None and not test(problem, problem["reference"]):
            counts["solutions that fail"] += 1
            continue
        wanted = own["per_problem"]
        kept = 0
        for mutant in choose(mutants_of(problem["reference"]), rng, wanted * (1 if test is None else _TRIES)):
            if kept == wanted:
                break
            if test is not None and test(problem, mutant.code):
                counts["mutants that pass"] += 1
                continue
            kept += 1
            yield _mutant_pair(problem, mutant)


def _mutant_pair(problem: Row, mutant: Mutant) -> Row:
    return {
        "prompt": problem["prompt"],
        "chosen": problem["reference"],
        "rejected": mutant.code,
        "span": list(mutant.span),
        "before": mutant.before,
        "after": mutant.after,
    }


def sampled_pairs(job: Job) -> Row:
    """Pairs of the start's own samples: one that passes its tests against one that fails them."""
    from sparsepo.evaluation.generation import sample_completions

    from .policies import load_policy, load_tokenizer

    own, test = job.settings, tester(job)
    model, tokenizer = load_policy(job.model()), load_tokenizer(job.model())
    rng = random.Random(own["seed"])
    found: dict[str, Any] = {}
    for part in ("train", "held_out"):
        problems = list(read_lines(job.inputs["data"] / f"{part}.jsonl"))
        groups = sample_completions(
            model,
            tokenizer,
            [problem["prompt"] for problem in problems],
            max_new_tokens=own["max_new_tokens"],
            samples_per_prompt=own["samples"],
            temperature=own["temperature"],
            seed=own["seed"],
        )
        rows: list[Row] = []
        for problem, group in zip(problems, groups, strict=True):
            texts = list(dict.fromkeys(program_of(sample.text) for sample in group if sample.text.strip()))
            passed = [(text, test(problem, text)) for text in texts]
            good, bad = ([text for text, ok in passed if ok is wanted] for wanted in (True, False))
            pairs = [(chosen, rejected) for chosen in good for rejected in bad]
            for chosen, rejected in rng.sample(pairs, min(own["per_problem"], len(pairs))):
                rows.append({"prompt": problem["prompt"], "chosen": chosen, "rejected": rejected})
        if not rows:
            raise ValueError(
                f"No {part} problem has both a passing and a failing sample among {own['samples']}: sample more "
                "(pairs.samples), start from a better model, or take mutants (pairs.source=mutants)."
            )
        found[part] = write_lines(job.folder / f"{part}.jsonl", rows[: own.get(f"{part}_pairs")])
    return {**found, "summary": f"{found['train']:,} training and {found['held_out']:,} held-out pairs of samples"}


def passes(job: Job) -> Callable[[Sequence[Row], Sequence[str]], list[float]]:
    """The reward: 1 for a sample that passes all tests of its problem, else 0."""
    test = tester(job)

    def score(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        return [float(test(row, program_of(text))) for row, text in zip(rows, texts, strict=True)]

    return score


def program_of(text: str) -> str:
    """The program at the beginning of a completion, up to where the model goes on with something else."""
    ends = [place for stop in _STOPS if (place := text.find(stop)) >= 0]
    return text[: min(ends)] + "\n" if ends else text


def tester(job: Job) -> Callable[[Row, str], bool]:
    """Runs a problem's tests on a program in the sandbox; whether all pass."""
    from sparsepo.evaluation.sandbox import Limits, run_tests

    limits = Limits(wall_seconds=job.settings["timeout"])

    def test(problem: Row, program: str) -> bool:
        if not _parses(program):  # it cannot pass; most samples of a small model end here
            return False
        return run_tests(program, test_job(problem), allow_code_execution=job.may_execute, limits=limits).passed

    return test


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def test_job(problem: Row) -> Any:
    """A problem's tests as the sandbox takes them: which functions they call, which modules they need."""
    from sparsepo.evaluation.sandbox import TestJob

    defined = {node.name for node in ast.walk(ast.parse(problem["reference"])) if isinstance(node, ast.FunctionDef)}
    nodes = [node for text in problem["tests"] for node in ast.walk(ast.parse(text))]
    names = list(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))
    functions = tuple(name for name in names if name in defined)
    modules = tuple(name for name in names if name in sys.stdlib_module_names and name not in defined)
    return TestJob(functions, tuple(problem["tests"]), problem["setup"], modules)
