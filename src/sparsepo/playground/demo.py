"""The demo: supervised training → sampled pairs → preference training → what changed, and what the masks chose.

Preference training is handed in as a function, so that the playground does not depend on the trainer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM

from sparsepo.evaluation.generation import Completion
from sparsepo.evaluation.kl import sequence_kl
from sparsepo.evaluation.token_table import ScoredBatch, TokenTable

from .display import Stages, auc_table, legend, mask_table, masked_text, policy_table
from .models import StepCallback, build_model, build_tokenizer, train_sft
from .pairs import make_pairs, sample_responses
from .quiet import quiet_libraries
from .settings import DemoSettings
from .world import World
from .yardstick import SIDES, token_table

Rows = list[dict[str, Any]]
STAGES = 6  # as _Run announces them


@dataclass(frozen=True)
class TrainingRequest:
    """What preference training is given.

    Args:
        model: the policy to train.
        reference: a frozen copy of it.
        tokenizer: theirs.
        train_rows, eval_rows: pairs in TRL's preference format.
        output_dir: where the plain model and ``mask/`` must be saved.
        settings: the demo's settings.
        on_step: to be called after each optimiser step.
    """

    model: Any
    reference: Any
    tokenizer: Any
    train_rows: Rows
    eval_rows: Rows
    output_dir: Path
    settings: DemoSettings
    on_step: StepCallback


@dataclass(frozen=True)
class TrainedPolicy:
    """What preference training gives back.

    Args:
        scored: the evaluation pairs, collated, with their scores under the trained policy.
        log: the values logged last.
    """

    scored: Iterable[ScoredBatch]
    log: dict[str, float]


PreferenceTraining = Callable[[TrainingRequest], TrainedPolicy]


def run_demo(
    output_dir: str | Path,
    preference_training: PreferenceTraining,
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the demo and print what it found.

    Args:
        output_dir: gets the trained model (with ``mask/`` where the masks are learned), the supervised model in
            ``sft/``, and the numbers in ``demo.json``.
        preference_training: trains the policy on pairs.
        settings: sizes and hyper-parameters.
        console: where to print.

    Returns:
        The contents of ``demo.json``.
    """
    settings = settings or DemoSettings()
    console = console or Console()
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with quiet_libraries(), _one_thread():
        run = _Run(output_dir, preference_training, settings, Stages(console, STAGES))
        results = run()
    results["seconds"] = round(time.perf_counter() - start, 1)
    (output_dir / "demo.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print()
    console.print(policy_table(results))
    if results["masks"]:
        console.print(mask_table(results))
    console.print(auc_table(results))
    if results["masks"]:
        _show_responses(console, run, settings.shown)
    console.print(
        f"[green]✓[/] done in {results['seconds']:.0f} s. A plain Hugging Face model:", output_dir, soft_wrap=True
    )
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread: a second gains little on a model this small, costs much on a busy machine (threads that wait for
    each other spin), and would make the numbers depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Run:
    """The stages, in order; each result is kept for the tables."""

    def __init__(self, output_dir: Path, training: PreferenceTraining, settings: DemoSettings, stages: Stages) -> None:
        self.output_dir, self.settings, self.stages = output_dir, settings, stages
        self.world = World()
        self.training = training
        self.tokenizer = build_tokenizer(self.world)
        self.reference: Any = None
        self.scored: list[ScoredBatch] = []

    def __call__(self) -> dict[str, Any]:
        """Run the stages; all numbers, JSON types only."""
        self.reference = self._supervised()
        train_rows, eval_rows = self._pairs()
        before = self._judge("sampling fresh responses, before", self.reference)
        trained = self._preferences(train_rows, eval_rows)
        policy = AutoModelForCausalLM.from_pretrained(self.output_dir)  # what anybody would load
        after = self._judge("sampling fresh responses, after", policy)
        with self.stages.stage("comparing the masks with the known words"):
            self.scored = list(trained.scored)
            self.table = token_table(self.world, self.tokenizer, self.reference, self.scored)
        return {
            "objective": self.settings.objective,
            "settings": asdict(self.settings),
            "before": before,
            "after": after,
            "train_pairs": len(train_rows),
            "held_out_pairs": len(eval_rows),
            "log": trained.log,
            **_judge_masks(self.table, self.settings.beta),
        }

    def _supervised(self) -> Any:
        s = self.settings
        reviews = self.world.reviews(s.texts, s.seed)
        model = build_model(self.tokenizer, s.architecture, s.seed)
        with self.stages.stage(f"supervised training on {len(reviews)} texts") as report:
            return train_sft(
                model,
                self.tokenizer,
                reviews,
                self.output_dir / "sft",
                epochs=s.sft_epochs,
                learning_rate=s.sft_learning_rate,
                batch_size=s.sft_batch_size,
                seed=s.seed,
                on_step=report,
            )

    def _pairs(self) -> tuple[Rows, Rows]:
        s = self.settings
        streams = {"pairs": s.prompts, "held-out pairs": s.held_out_prompts}
        total = sum(streams.values()) * s.samples
        rows: list[Rows] = []
        with self.stages.stage("sampling responses and pairing them by the known words") as report:
            done = 0
            for stream, count in streams.items():
                rows.append(
                    make_pairs(
                        self.world,
                        self.reference,
                        self.tokenizer,
                        count,
                        seed=s.seed,
                        stream=stream,
                        samples=s.samples,
                        progress=lambda n, _, before=done: report(before + n, total),  # type: ignore[misc]
                    )
                )
                done += count * s.samples
        train, held_out = rows
        if not train or not held_out:
            raise ValueError(
                f"The samples gave {len(train)} training and {len(held_out)} held-out pairs; sample more prompts "
                f"(prompts={s.prompts}, held_out_prompts={s.held_out_prompts})."
            )
        return train, held_out

    def _judge(self, title: str, model: Any) -> dict[str, Any]:
        """Reward, words and KL of fresh responses; one response a prompt, so that they are independent."""
        s = self.settings
        prompts = self.world.prompts(s.evaluation_prompts, s.seed, "evaluation")
        with self.stages.stage(title) as report:
            groups = sample_responses(model, self.tokenizer, prompts, samples=1, seed=s.seed, progress=report)
            samples = [group[0] for group in groups]
            kl = sequence_kl(model, self.reference, samples, batch_size=256)
        return _sample_summary(self.world, samples) | {"kl": _mean_and_error(kl.numpy())}

    def _preferences(self, train_rows: Rows, eval_rows: Rows) -> TrainedPolicy:
        s = self.settings
        folder = self.output_dir / "sft"
        with self.stages.stage(f"{s.objective} on {len(train_rows)} pairs") as report:
            return self.training(
                TrainingRequest(
                    model=AutoModelForCausalLM.from_pretrained(folder),
                    reference=AutoModelForCausalLM.from_pretrained(folder),
                    tokenizer=self.tokenizer,
                    train_rows=train_rows,
                    eval_rows=eval_rows,
                    output_dir=self.output_dir,
                    settings=s,
                    on_step=report,
                )
            )


def _judge_masks(table: TokenTable, beta: float) -> dict[str, Any]:
    """Size and ranking of each score that the table holds."""
    masks = {name: table.mask_summary(name) for name in ("reward_mask", "kl_mask") if name in table.scores}
    auc = {
        name: {
            side + suffix: table.ranking(name, side, within)["auc"]
            for suffix, within in (("", None), ("_open_class", "open_class"))
            for side in SIDES
        }
        for name in table.scores
    }
    result: dict[str, Any] = {"masks": masks, "auc": auc}
    if masks:
        result["effective_beta"] = beta * masks["reward_mask"]["mean"]
    return result


def _sample_summary(world: World, samples: Sequence[Completion]) -> dict[str, Any]:
    counts = np.array([world.counts(sample.text) for sample in samples])
    return {
        "reward": _mean_and_error(np.array([world.reward(sample.text) for sample in samples])),
        "positive": float(counts[:, 0].mean()),
        "negative": float(counts[:, 1].mean()),
        "length": float(np.mean([len(sample.token_ids) for sample in samples])),
        "finished": float(np.mean([sample.finished for sample in samples])),
    }


def _mean_and_error(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean and its standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {"mean": float(values.mean()), "se": float(error)}


def _show_responses(console: Console, run: _Run, count: int) -> None:
    """The first held-out pairs with the reward mask of each word, on one scale."""
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    largest = float(np.quantile(run.table.scores["reward_mask"], 0.99))
    console.print()
    console.print(legend(coloured))
    batch, scores = run.scored[0]
    pairs = len(batch["input_ids"]) // 2
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    for row in range(min(count, pairs)):
        for title, side, line in (("chosen", scores.chosen, row), ("rejected", scores.rejected, pairs + row)):
            keep = side.response_mask[row].cpu()
            ids = batch["input_ids"][line, 1:].cpu()[keep].tolist()
            words = run.tokenizer.convert_ids_to_tokens(ids)
            assert side.reward_mask is not None
            mask = side.reward_mask[row].cpu()[keep].tolist()
            grid.add_row(
                Text(title, style="green" if title == "chosen" else "red"),
                masked_text(words, mask, run.world, largest, coloured),
            )
        grid.add_row("", "")
    console.print(grid)
