"""Training under label noise and judging on other data: reward accuracy of each objective on clean held-out sets."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.inspection.document import Document, figure_style
from sparsepo.loading import load_model, load_tokenizer

from .intervals import over_seeds
from .store import Store
from .tasks import key_of
from .trainers import build_trainer

OBJECTIVES: dict[str, dict[str, Any]] = {
    "DPO": {"objective": "dpo"},
    "TDPO1": {"objective": "tdpo1"},
    "SparsePO": {"objective": "sparsepo"},
    "MaPO": {"objective": "mapo"},
}


@dataclass(frozen=True)
class NoisyRun:
    """One training run.

    Args:
        label: the method's name.
        model: folder or hub id of policy and reference.
        train: file of preference pairs.
        tests: name → file of clean held-out pairs.
        settings: of ``SparsePOConfig``.
        flip: share of the training pairs whose sides are exchanged.
        seed: of data order, heads and of which pairs are flipped.
        steps, batch_size, learning_rate, max_length, limit: of training; ``limit``: most pairs of each file.
    """

    label: str
    model: str
    train: str
    tests: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    flip: float = 0.0
    seed: int = 0
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-4
    max_length: int = 192
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip!r} must be a share of the pairs, from 0 to 1.")

    @property
    def key(self) -> str:
        """Name of this run's file."""
        return key_of(f"flip{self.flip:g}-seed{self.seed}", {k: v for k, v in self.to_json().items() if k != "label"})

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    def run(self, store: Store) -> dict[str, Any]:
        """Train on noisy pairs, judge on clean ones. Returns JSON types."""
        start = time.perf_counter()
        rows = flip_pairs(read_pairs(self.train, self.limit), self.flip, self.seed)
        tests = {name: read_pairs(path, self.limit) for name, path in self.tests.items()}
        policy, reference = (load_model(self.model) for _ in range(2))
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(
                policy,
                reference,
                load_tokenizer(self.model),
                rows,
                next(iter(tests.values())),
                {"max_length": self.max_length, **self.settings},
                output_dir=folder,
                steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                seed=self.seed,
            )
            trainer.train()
            judged = {name: _judge(trainer, own) for name, own in tests.items()}
        return {"tests": judged, "ranking": {}, "masks": {}, "health": {"seen": []}} | {
            "seconds": round(time.perf_counter() - start, 1)
        }


def _judge(trainer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    from datasets import Dataset

    metrics = trainer.evaluate(trainer.prepare_pairs(Dataset.from_list(rows)))
    names = {"accuracy": "eval_rewards/accuracies", "margin": "eval_rewards/margins", "loss": "eval_loss",
             "kl": "eval_kl/chosen", "zeros": "eval_mask/reward/sparsity"}  # fmt: skip
    return {name: float(metrics[key]) for name, key in names.items() if key in metrics} | {"pairs": len(rows)}


def read_pairs(path: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows with prompt, chosen and rejected; HH transcripts are split at their last turn. Raises ``ValueError``."""
    from sparsepo.data import load_preference_data

    loaded = load_preference_data(path)
    rows = [
        {name: row[name] for name in ("prompt", "chosen", "rejected") if row.get(name) is not None} for row in loaded
    ]
    return rows[:limit]


def flip_pairs(rows: Sequence[Mapping[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """Exchange chosen and rejected in a share of the rows, rounded; those flipped at a smaller share are among them."""
    order = np.random.default_rng([seed, 7]).permutation(len(rows))
    flipped = set(order[: round(share * len(rows))].tolist())
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if place in flipped else dict(row)
        for place, row in enumerate(rows)
    ]


def label_tasks(
    model: str, train: str, tests: dict[str, str], seeds: Sequence[int], flips: Sequence[float], **run: Any
) -> list[NoisyRun]:
    """Every method with every share of flipped pairs, seed by seed."""
    beta = {"beta": run.pop("beta")} if run.get("beta") is not None else {}
    run.pop("beta", None)
    methods: Sequence[str] = run.pop("objectives", None) or tuple(OBJECTIVES)
    return [
        NoisyRun(name, model, train, tests, OBJECTIVES[name] | beta, flip, seed, **run)
        for seed in seeds
        for flip in flips
        for name in methods
    ]


def accuracy_table(tasks: Sequence[NoisyRun], store: Store, number: str = "accuracy") -> dict[str, Any]:
    """By test set a header and rows: methods × shares of flipped pairs, mean ± 95 % interval over seeds."""
    flips = sorted({task.flip for task in tasks})
    tables = {}
    for test in tasks[0].tests:
        rows = []
        for label in dict.fromkeys(task.label for task in tasks):
            cells = []
            for flip in flips:
                values = _values([t for t in tasks if t.label == label and t.flip == flip], store, test, number)
                cells.append(over_seeds(values).text() if values else "–")
            rows.append([label, *cells])
        tables[test] = (["method", *(f"{100 * flip:g} % flipped" for flip in flips)], rows)
    return tables


def _values(tasks: Sequence[NoisyRun], store: Store, test: str, number: str) -> list[float]:
    results = [store.result(task) for task in tasks]
    return [
        result["tests"][test][number] for result in results if result is not None and number in result["tests"][test]
    ]


def drop_rows(tasks: Sequence[NoisyRun], store: Store, test: str) -> tuple[list[str], list[list[str]]]:
    """How far accuracy falls from no flipped pair, seed by seed."""
    flips = [flip for flip in sorted({task.flip for task in tasks}) if flip]
    rows = []
    for label in dict.fromkeys(task.label for task in tasks):
        cells = []
        for flip in flips:
            differences = []
            for seed in sorted({task.seed for task in tasks}):
                own = {t.flip: store.result(t) for t in tasks if t.label == label and t.seed == seed}
                before, after = own.get(0.0), own.get(flip)
                if before is not None and after is not None:
                    differences.append(after["tests"][test]["accuracy"] - before["tests"][test]["accuracy"])
            cells.append(over_seeds(differences).text() if differences else "–")
        rows.append([label, *cells])
    return ["method", *(f"{100 * flip:g} % flipped" for flip in flips)], rows


def write_training_report(tasks: Sequence[NoisyRun], store: Store, title: str) -> Path:
    """Write ``robustness.html`` and ``plots/`` into the store's folder; returns the page's path."""
    document = Document(title, Path(tasks[0].train).name, store.folder / "plots")
    tables = {number: accuracy_table(tasks, store, number) for number in ("accuracy", "margin", "kl", "zeros")}
    for test in tasks[0].tests:
        document.heading(test)
        with figure_style() as pyplot:
            document.figure(_figure(pyplot, tasks, store, test), f"accuracy_{test}", f"Reward accuracy on {test}.")
        for number, title_of in (("accuracy", "Reward accuracy"), ("margin", "Reward margin"), ("kl", "KL of chosen"),
                                 ("zeros", "Zeros in the reward mask")):  # fmt: skip
            header, rows = tables[number][test]
            if any(cell != "–" for row in rows for cell in row[1:]):
                document.subheading(title_of)
                document.table(header, rows)
        if len({task.flip for task in tasks}) > 1 and any(task.flip == 0 for task in tasks):
            document.subheading("Accuracy, minus that without flipped pairs, seed by seed")
            document.table(*drop_rows(tasks, store, test))
    document.text(
        f"Mean ± half of the 95 % interval over {len({task.seed for task in tasks})} seeds (Student's t); test pairs are "
        "the same for all, and clean."
    )
    return document.write(store.folder / "robustness.html")


def _figure(pyplot: Any, tasks: Sequence[NoisyRun], store: Store, test: str) -> Any:
    figure, axes = pyplot.subplots(figsize=(5.4, 3.1))
    labels, flips = list(dict.fromkeys(task.label for task in tasks)), sorted({task.flip for task in tasks})
    for place, label in enumerate(labels):
        points = []
        for flip in flips:
            values = _values([t for t in tasks if t.label == label and t.flip == flip], store, test, "accuracy")
            if values:
                own = over_seeds(values)
                points.append((100 * flip + 0.35 * (place - len(labels) / 2), own.mean, own.half_width or 0.0))
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, yerr=error, marker="o", markersize=4, capsize=2, label=label)
    axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xlabel("training pairs with exchanged sides, %")
    axes.set_ylabel("reward accuracy")
    axes.legend(fontsize=8)
    return figure
