"""The measuring of ``sparsepo frontier``: models loaded one at a time, points taken from the store where they are there."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sparsepo.evaluation.frontier_points import Point, PointSettings, PointStore, fingerprint, measure_point
from sparsepo.evaluation.frontier_summary import MeasuredRun
from sparsepo.evaluation.generation import Completion

from .frontier_runs import FrontierRun
from .tables import say

_NOT_SETTINGS = ("func", "command", "runs", "output", "show")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of a call, for the report."""
    return {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}


class Measuring:
    """Points of references and runs.

    Args:
        args: the flags.
        prompts: held-out prompts.
        reward: scores completions.
        console: gets a line a point.
    """

    def __init__(self, args: argparse.Namespace, prompts: list[Any], reward: Any, console: Any) -> None:
        self.args, self.prompts, self.reward, self.console = args, prompts, reward, console
        settings = PointSettings(args.samples, args.max_new_tokens, args.seed, args.max_prompt_length)
        folder = Path(args.output).expanduser() / "points"
        self.store = PointStore(folder, prompts, settings)
        own = replace(settings, samples=args.reference_samples or args.samples)
        self.reference_store = PointStore(folder, prompts, own)
        own_flags = {name: value for name, value in vars(args).items() if name.startswith("reward")}
        self._reward_identity = {**own_flags, "reward_files": _reward_files(args.reward)}
        self._reference: tuple[str, Any] | None = None  # the one loaded last
        self._pairs: dict[str, dict[str, list[Completion]]] = {}
        self._left_out: list[str] = []

    def notes(self) -> list[str]:
        """What a user should know of what was measured."""
        return [*dict.fromkeys(self._left_out), *self.reward.notes()]

    def reference(self, name: str) -> Point:
        """The point of a reference, which every run from it starts at."""
        from .models import load_tokenizer

        def measure(settings: PointSettings) -> Point:
            model = self._load_reference(name)
            tokenizer = load_tokenizer(name, trust_remote_code=self.args.trust_remote_code)
            return self._measured(model, model, tokenizer, settings)

        identity = {"model": fingerprint(name), "dtype": self.args.dtype, **self._reward_identity}
        return self._get(self.reference_store, f"reference-{Path(name).name}", identity, measure, f"reference {name}")[
            0
        ]

    def run(self, run: FrontierRun) -> MeasuredRun:
        """All points of a run."""
        found = [self._checkpoint(run, step, folder) for step, folder in run.checkpoints]
        return MeasuredRun(
            run.method,
            run.beta,
            run.seed or 0,
            run.folder,
            run.reference,
            [step for step, _ in run.checkpoints],
            [point for point, _ in found],
            [key for _, key in found],
        )

    def _checkpoint(self, run: FrontierRun, step: int, folder: str) -> tuple[Point, str]:
        from .models import load_for_sampling, load_tokenizer

        masked = self._has_mask(run, folder)

        def measure(settings: PointSettings) -> Point:
            from sparsepo.masks import load_mask

            args = self.args
            reference = self._load_reference(run.reference)
            policy = load_for_sampling(folder, args.dtype, args.use_cpu, args.trust_remote_code)
            own = (Path(folder) / "tokenizer_config.json").is_file()
            tokenizer = load_tokenizer(folder if own else run.reference, trust_remote_code=args.trust_remote_code)
            mask = load_mask(folder) if masked else None
            return self._measured(policy, reference, tokenizer, settings, mask, self._responses(run, tokenizer))

        identity = {
            "model": fingerprint(folder),
            "reference": fingerprint(run.reference),
            "dtype": self.args.dtype,
            "masked": masked,
            "pairs": None if self.args.pairs is None else [*fingerprint_file(self.args.pairs), self.args.pairs_limit],
            **self._reward_identity,
        }
        beta = "" if run.beta is None else f" β {run.beta:g}"
        title = f"{run.method}{beta} seed {run.seed} step {step}"
        name = f"{run.method}-{run.beta}-{run.seed}-{step}"
        return self._get(self.store, name, identity, measure, title)

    def _get(self, store: PointStore, name: str, identity: Any, measure: Any, title: str) -> tuple[Point, str]:
        started = time.perf_counter()
        point, key, was_there = store.get(name, identity, measure)
        seconds = "kept" if was_there else f"{time.perf_counter() - started:.1f} s"
        kl = point.kls["exact"].mean()
        say(self.console, f"{title}: reward {point.rewards.mean():.4f}, KL {kl:.4f} ({seconds})")
        return point, key

    def _measured(
        self, policy: Any, reference: Any, tokenizer: Any, settings: PointSettings, mask: Any = None, pairs: Any = None
    ) -> Point:
        from rich.progress import Progress

        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("sampling", total=None)
            return measure_point(
                policy,
                reference,
                tokenizer,
                self.prompts,
                self.reward,
                settings,
                masker=mask,
                pairs=pairs,
                batch_size=self.args.batch_size,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )

    def _load_reference(self, name: str) -> Any:
        from .models import load_for_sampling

        if self._reference is None or self._reference[0] != name:
            self._reference = None  # the old one goes before the new one comes
            model = load_for_sampling(name, self.args.dtype, self.args.use_cpu, self.args.trust_remote_code)
            self._reference = name, model
        return self._reference[1]

    def _has_mask(self, run: FrontierRun, folder: str) -> bool:
        """Whether the masked KL can be measured; where not, why is said."""
        from sparsepo.evaluation.kl import MASKS_OF_TEXTS
        from sparsepo.masks.saving import read_mask_info

        try:
            kind = read_mask_info(folder)["kind"]
        except FileNotFoundError:
            return False
        if kind not in MASKS_OF_TEXTS:
            self._left_out.append(f"{run.method}: no masked KL, since {kind} masks belong to rows of data.")
            return False
        if (Path(folder) / "reference").is_dir():
            self._left_out.append(f"{run.method}: no masked KL, since its mask reads a reference that moved.")
            return False
        return True

    def _responses(self, run: FrontierRun, tokenizer: Any) -> dict[str, list[Completion]] | None:
        """Chosen and rejected responses of ``--pairs``, tokenised as in training, once a reference."""
        if self.args.pairs is None:
            return None
        if run.reference not in self._pairs:
            self._pairs[run.reference] = load_responses(self.args, tokenizer, run.reference, self.console)
        return self._pairs[run.reference]


def _reward_files(spec: str) -> list[Any]:
    """What tells the files that a reward reads from others of the same place."""
    argument = spec.partition(":")[2]
    places = [argument, argument.rpartition(":")[0], *argument.split(",")]  # a model, a model with a label, word lists
    files = [fingerprint_file(place) for place in places if Path(place).expanduser().is_file()]
    return [*files, *(fingerprint(place) for place in places if place and Path(place).expanduser().is_dir())]


def fingerprint_file(path: str) -> list[Any]:
    """What tells a data file from another of the same name."""
    place = Path(path).expanduser()
    return [path, blake2b(place.read_bytes(), digest_size=8).hexdigest()] if place.is_file() else [path]


def load_responses(args: argparse.Namespace, tokenizer: Any, model: str, console: Any) -> dict[str, list[Completion]]:
    """The responses of preference pairs as completions of their prompts, cut to the model's positions."""
    from sparsepo.data import check_preferences, load_preference_data
    from sparsepo.data.lengths import TokenizedRow, tokenize_rows

    from .models import positions_of

    length = min(positions_of(model, args.trust_remote_code) or 1024, 1024)
    loaded = load_preference_data(args.pairs)
    if len(loaded) > args.pairs_limit:
        loaded = loaded.select(range(args.pairs_limit))
    rows, report = check_preferences(loaded, tokenizer=tokenizer, max_length=length, name=args.pairs)
    report.print(console)
    found: dict[str, list[Completion]] = {"chosen": [], "rejected": []}
    for row in tokenize_rows(list(rows), tokenizer):
        if isinstance(row, TokenizedRow):  # rows that a chat template refuses are dropped by the check
            for side, ids in (("chosen", row.chosen), ("rejected", row.rejected)):
                kept = ids[: max(length - len(row.prompt), 0)]
                if row.prompt and kept:
                    found[side].append(Completion(tuple(row.prompt), tuple(kept), "", len(kept) == len(ids)))
    return found
