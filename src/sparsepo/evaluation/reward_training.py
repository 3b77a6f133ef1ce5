"""Training of reward models: a class (labelled texts), a number (scored completions), or a preference (pairs).

Classes and numbers are fitted by transformers' Trainer (cross-entropy, squared error), preferences by TRL's RewardTrainer
(Bradley–Terry: −log σ(r_w − r_l)). What is judged on held-out rows is the saved folder, read as a reward.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsepo.data.pairs import prompt_key
from sparsepo.data.writing import replacing

from .proportions import wilson_interval
from .ranking import spearman
from .reward_classifiers import SETTINGS_FILE, TextEncoder, text_positions
from .rewards import Reward, get_reward

Target = Literal["classes", "scores", "pairs"]
Row = Mapping[str, Any]
_WORK = "training"  # checkpoints of an unfinished run


@dataclass(frozen=True)
class RewardTraining:
    """Hyper-parameters.

    Args:
        epochs, learning_rate, batch_size: of AdamW with linear decay and 5 % warm-up; pairs count as one row.
        max_length: tokens of a text; the beginning of a longer one is cut.
        seed: of the head's weights and the order.
        use_cpu: even where there is a GPU.
    """

    epochs: float = 3.0
    learning_rate: float = 5e-4
    batch_size: int = 16
    max_length: int = 256
    seed: int = 0
    use_cpu: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size", "max_length"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")


def train_reward(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    target: Target,
    output: str | Path,
    settings: RewardTraining = RewardTraining(),
    callbacks: Sequence[Any] = (),
) -> None:
    """Train a sequence classifier and save it as a reward.

    Args:
        model: of ``AutoModelForSequenceClassification``, with as many labels as there are classes, or one.
        tokenizer: its tokenizer.
        rows: ``text`` and ``label`` (classes); ``prompt``, ``text``, ``reward`` (scores); ``prompt``, ``chosen``,
            ``rejected`` (pairs). Plain texts.
        target: which of them.
        output: folder of the reward model. An unfinished run there, of the same rows and settings, is gone on with.
        settings: hyper-parameters.
        callbacks: of the trainer.
    """
    output = Path(output)
    encoder = _encoder(model, tokenizer, settings.max_length)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    work = output / _WORK
    resume = _claim(work, settings, target, len(rows))
    build = _pair_trainer if target == "pairs" else _text_trainer
    trainer = build(model, tokenizer, rows, target, encoder, work, settings)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    trainer.model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    content = {
        "target": target,
        "reads": "completion" if target == "classes" else "both",
        "max_length": encoder.max_length,
        "append_end": encoder.append_end,
        "rows": len(rows),
        "settings": asdict(settings),
    }
    with replacing(output / SETTINGS_FILE) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work)


def judge_reward(folder: str | Path, rows: Sequence[Row], target: Target, use_cpu: bool = False) -> dict[str, Any]:
    """What the saved reward model gives on held-out rows.

    Returns:
        ``rows``; ``accuracy`` with Wilson's 95 % interval ``low``, ``high``: of classes, of the order of pairs, or of the
        order of every two completions of a prompt whose rewards differ (scores); ``chance`` beside it; and for scores
        ``spearman``, the rank correlation over all completions.
    """
    device = "cpu" if use_cpu else None
    if target == "classes":
        return _judged_classes(folder, rows, device)
    reward = get_reward(f"regression:{folder}", device=device)
    if target == "pairs":
        won = [
            high - low
            for high, low in zip(*(_scores(reward, rows, side) for side in ("chosen", "rejected")), strict=True)
        ]
        return {"rows": len(rows), **_share(won), "chance": 0.5}
    scores = _scores(reward, rows, "text")
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(prompt_key(row["prompt"]), []).append(place)
    ordered = [
        (scores[a] - scores[b]) * (1 if rows[a]["reward"] > rows[b]["reward"] else -1)
        for own in groups.values()
        for at, a in enumerate(own)
        for b in own[at + 1 :]
        if rows[a]["reward"] != rows[b]["reward"]
    ]
    known = np.array([row["reward"] for row in rows], dtype=np.float64)
    found = _share(ordered) if ordered else {"accuracy": None, "low": None, "high": None}
    return {"rows": len(rows), **found, "chance": 0.5, "spearman": spearman(np.array(scores), known)}


def _judged_classes(folder: str | Path, rows: Sequence[Row], device: str | None) -> dict[str, Any]:
    labels = sorted({row["label"] for row in rows})
    by_label = []
    for label in labels:
        reward = get_reward(f"classifier:{folder}:{label}", device=device)
        by_label.append(reward([""] * len(rows), [row["text"] for row in rows]))
    guessed = np.array(by_label).argmax(0)
    hits = [1.0 if labels[guess] == row["label"] else -1.0 for guess, row in zip(guessed, rows, strict=True)]
    most = max(sum(row["label"] == label for row in rows) for label in labels)
    return {"rows": len(rows), **_share(hits), "chance": most / len(rows)}


def _scores(reward: Reward, rows: Sequence[Row], name: str) -> list[float]:
    return reward([row["prompt"] for row in rows], [row[name] for row in rows])


def _share(margins: Sequence[float]) -> dict[str, float]:
    """Share of margins above zero (a tie counts half) with Wilson's 95 % interval."""
    share = float(np.mean([1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]))
    low, high = wilson_interval(share, len(margins))
    return {"accuracy": share, "low": low, "high": high}


def _encoder(model: Any, tokenizer: Any, max_length: int) -> TextEncoder:
    """Decoders are read at their last token: an end token there, unless the tokenizer closes texts itself."""
    closed = bool({*tokenizer("a")["input_ids"][-1:]} & {*tokenizer.all_special_ids})
    return TextEncoder(tokenizer, min(max_length, text_positions(model, tokenizer)), not closed)


def _text_trainer(
    model: Any, tokenizer: Any, rows: Sequence[Row], target: Target, encoder: TextEncoder, work: Path, s: RewardTraining
) -> Any:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    from sparsepo.data.joining import joined

    if target == "classes":
        texts = [row["text"] for row in rows]
        labels: list[Any] = [model.config.label2id[row["label"]] for row in rows]
    else:
        texts = ["".join(joined(row["prompt"], row["text"])) for row in rows]
        values = np.array([row["reward"] for row in rows], dtype=np.float64)
        if values.std() == 0:
            raise ValueError("All rewards are alike: there is nothing to fit.")
        labels = ((values - values.mean()) / values.std()).astype(np.float32).tolist()
    data = Dataset.from_list(
        [{"input_ids": encoder(text)[0], "labels": label} for text, label in zip(texts, labels, strict=True)]
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**_arguments(work, s)),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _pair_trainer(
    model: Any, tokenizer: Any, rows: Sequence[Row], target: Target, encoder: TextEncoder, work: Path, s: RewardTraining
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import RewardConfig, RewardTrainer

    from sparsepo.data.joining import joined

    data = Dataset.from_list(
        [
            {f"{side}_ids": encoder("".join(joined(row["prompt"], row[side])))[0] for side in ("chosen", "rejected")}
            for row in rows
        ]
    )
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**_arguments(work, s), max_length=None),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(work: Path, s: RewardTraining) -> dict[str, Any]:
    return {
        "output_dir": str(work),
        "num_train_epochs": s.epochs,
        "learning_rate": s.learning_rate,
        "per_device_train_batch_size": s.batch_size,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
        "weight_decay": 0.01,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_steps": 20,
        "report_to": "none",
        "seed": s.seed,
        "use_cpu": s.use_cpu,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def _claim(work: Path, settings: RewardTraining, target: Target, rows: int) -> str | None:
    """The checkpoint of an unfinished run of the same kind; a run of another kind is refused."""
    identity = {**asdict(settings), "target": target, "rows": rows}
    note = work / "run.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != identity:
        raise ValueError(f"{work} holds an unfinished run of other settings; delete it, or give another folder.")
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(identity) + "\n", encoding="utf-8")
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if (path / "trainer_state.json").is_file()]
    return str(whole[-1]) if whole else None
