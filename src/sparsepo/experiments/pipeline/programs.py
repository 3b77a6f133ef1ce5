"""The code task: problems with tests, pairs of passing and failing programs, and rewards by running what a model wrote."""

from __future__ import annotations

import ast
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.data.mutations import choose, mutants_of
from sparsepo.data.reading import read_rows
from sparsepo.evaluation.code.pairs import TRIES, mutant_row, tried
from sparsepo.evaluation.code.problems import mbpp_job, mbpp_solution, mbpp_task, program_of
from sparsepo.loading import load_tokenizer

from .jobs import Job, Row, read_lines, write_lines


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
    mbpp_job(row, f"problem {row.get('task_id')}")  # refuses tests that cannot be run, before anything is trained
    return {"prompt": mbpp_task(row), "reference": mbpp_solution(row), "problem": row}


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
    problems = list(read_lines(job.inputs["data"] / f"{part}.jsonl"))
    tries = own["per_problem"] * (TRIES if own["check"] else 1)
    candidates = [(problem["reference"], choose(mutants_of(problem["reference"]), rng, tries)) for problem in problems]
    if not own["check"]:
        for problem, (solution, chosen) in zip(problems, candidates, strict=True):
            yield from (mutant_row(problem["prompt"], solution, mutant) for mutant in chosen)
        return
    judged = tried(candidates, lambda asked: which_pass(job, [(problems[place], code) for place, code in asked]))
    for problem, (is_solved, results) in zip(problems, judged, strict=True):
        counts["problems"] += 1
        if not is_solved:
            counts["solutions that fail"] += 1
            continue
        failing = [mutant for mutant, passed in results if not passed]
        counts["mutants that pass"] += len(results) - len(failing)
        for mutant in failing[: own["per_problem"]]:
            yield mutant_row(problem["prompt"], problem["reference"], mutant)


def sampled_pairs(job: Job) -> Row:
    """Pairs of the start's own samples: one that passes its tests against one that fails them."""
    from sparsepo.evaluation.generation import sample_completions

    from .policies import load_policy

    own = job.settings
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
        texts = [
            list(dict.fromkeys(program_of(sample.text) for sample in group if sample.text.strip())) for group in groups
        ]
        asked = [(problem, text) for problem, own_texts in zip(problems, texts, strict=True) for text in own_texts]
        passed = iter(which_pass(job, asked))
        rows: list[Row] = []
        for problem, own_texts in zip(problems, texts, strict=True):
            judged = [(text, next(passed)) for text in own_texts]
            good, bad = ([text for text, ok in judged if ok is wanted] for wanted in (True, False))
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

    def score(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        programs = [program_of(text) for text in texts]
        return [float(value) for value in which_pass(job, list(zip(rows, programs, strict=True)))]

    return score


def pass_rates(rewards: Sequence[float], samples: int) -> dict[str, float]:
    """pass@k over problems, for the k among 1, 10, 100 that there are samples for."""
    from sparsepo.evaluation.code import pass_at_k

    counts = np.asarray(rewards).reshape(-1, samples).sum(1).astype(int)
    return {
        f"pass_at_{k}": float(np.mean([pass_at_k(samples, int(count), k) for count in counts]))
        for k in (1, 10, 100)
        if k <= samples
    }


def which_pass(job: Job, asked: Sequence[tuple[Row, str]]) -> list[bool]:
    """Run programs against the tests of their problems in the sandbox; results are kept as they come."""
    from sparsepo.evaluation.code import Executor
    from sparsepo.evaluation.sandbox import Limits

    # computing decides, not wall time: on a busy machine that would label correct programs as failing
    timeout = job.settings["timeout"]
    limits = Limits(cpu_seconds=math.ceil(timeout), wall_seconds=max(30, 10 * timeout))
    runner = Executor(job.may_execute, limits, workers=job.settings["workers"])
    # what does not parse cannot pass: most samples of a small model end here
    parsed = [place for place, (_, program) in enumerate(asked) if _parses(program)]
    jobs = [(asked[place][1], mbpp_job(asked[place][0]["problem"], "problem")) for place in parsed]
    outcomes = runner.run(jobs, keep=job.folder / "executions.jsonl")
    passed = [False] * len(asked)
    for place, outcome in zip(parsed, outcomes, strict=True):
        passed[place] = outcome.passed
    return passed


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
