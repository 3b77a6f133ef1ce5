"""Flags of ``train`` and ``sft`` that are neither TRL's nor the trainer's: which data, which start, which folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .content_flags import FILTER_HELP, WORDS_HELP


def _flag(default: Any, text: str, choices: list[str] | None = None) -> Any:
    metadata: dict[str, Any] = {"help": text}
    if choices:
        metadata["choices"] = choices
    return field(default=default, metadata=metadata)


@dataclass
class RunArguments:
    """What every training command takes."""

    eval_dataset: str | None = _flag(
        None, "Evaluation data: a file, folder or hub id. Unset: eval_fraction, or the test split of the data set."
    )
    eval_fraction: float | None = _flag(None, "Set this share of the prompts apart for evaluation (seeded).")
    overwrite_output_dir: bool = _flag(False, "Replace the run that output_dir holds.")
    accelerate_config: str | None = _flag(
        None,
        "Start the run through accelerate: a configuration file, or ddp, fsdp2, zero2, zero3, or another that "
        "TRL ships.",
    )
    num_processes: int | None = _flag(
        None, "With accelerate_config: number of processes. Unset: the file's, or one a device."
    )

    def __post_init__(self) -> None:
        if self.eval_fraction is not None and not 0 < self.eval_fraction < 1:
            raise ValueError(f"eval_fraction={self.eval_fraction!r} must lie between 0 and 1.")
        if self.eval_fraction is not None and self.eval_dataset is not None:
            raise ValueError("eval_dataset and eval_fraction exclude each other; give one.")
        if self.num_processes is not None and self.accelerate_config is None:
            raise ValueError(f"num_processes={self.num_processes} has no effect without accelerate_config.")


@dataclass
class TrainArguments(RunArguments):
    """Flags of ``sparsepo train``."""

    ref_model_name_or_path: str | None = _flag(
        None, "The frozen reference: a folder or hub id. Unset: the start of the policy."
    )
    dataset_dir: str | None = _flag(None, "Folder inside a hub data set, such as harmless-base in Anthropic/hh-rlhf.")
    rename: list[str] | None = field(
        default=None, metadata={"help": "Columns to rename on loading: question=prompt answer=chosen ..."}
    )
    pairs: str | None = _flag(
        None,
        "Scored completions: which of a prompt's become pairs: best_worst (default), all, or threshold.",
        ["best_worst", "all", "threshold"],
    )
    pairs_margin: float | None = _flag(None, "Scored completions: least difference of the rewards of a pair.")
    pairs_cap: int | None = _flag(None, "Scored completions: most pairs of one prompt.")
    strict: bool = _flag(False, "Stop if a row would be dropped by the check before training.")
    max_dropped: float = _flag(0.5, "Stop if more than this share of the rows would be dropped.")
    max_lost: float | None = _flag(
        None, "Drop rows of which a response loses more than this share of its tokens to max_length."
    )
    hh_conversational: bool = _flag(
        False, "Dialogue transcripts become chat messages (for models with a chat template)."
    )
    inspect_pairs: int = _flag(
        4,
        "Held-out pairs whose masks are kept while training and shown in OUT/masks.html; the report shows 20. 0: none.",
    )
    sample_prompts: str | None = _flag(
        None, "Sample these prompts (a .txt file, or rows with a prompt; the first 64) into OUT/samples.jsonl."
    )
    sample_every: int = _flag(100, "With sample_prompts: steps between two samplings; also at the start and the end.")
    sample_max_new_tokens: int = _flag(64, "With sample_prompts: longest completion.")
    sample_reward: str | None = _flag(None, "With sample_prompts: reward of the samples, as in sparsepo data sample.")
    report: bool = _flag(True, "Write OUT/report.html at the end: settings, curves, example pairs, data check.")
    content_filter: bool = _flag(False, f"In terminal and pages {FILTER_HELP}.")
    content_words: str | None = _flag(None, f"A file: {WORDS_HELP}.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inspect_pairs < 0:
            raise ValueError(f"inspect_pairs={self.inspect_pairs} must be at least 0.")
        for name in ("sample_every", "sample_max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.sample_reward is not None and self.sample_prompts is None:
            raise ValueError(f"sample_reward={self.sample_reward!r} has no effect without sample_prompts.")


@dataclass
class SftArguments(RunArguments):
    """Flags of ``sparsepo sft``."""

    text_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Local files instead of dataset_name: JSONL and the like, .txt, .zip of text files, folders of these."
        },
    )
    init_from_config: str | None = _flag(
        None,
        "Start from random weights: gpt2-1m, gpt2-4m, llama-1m, llama-4m, or a config.json. Instead of "
        "model_name_or_path.",
    )
    train_tokenizer: bool = _flag(False, "With init_from_config: train a byte-level BPE tokenizer on the texts.")
    tokenizer_name_or_path: str | None = _flag(None, "With init_from_config: use this tokenizer.")
    vocab_size: int | None = _flag(None, "With train_tokenizer: entries of its vocabulary. Unset: 4096.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from_config is None:
            for name in ("train_tokenizer", "tokenizer_name_or_path", "vocab_size"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)!r} has no effect without init_from_config.")
        elif self.train_tokenizer == (self.tokenizer_name_or_path is not None):
            raise ValueError("init_from_config needs one of train_tokenizer and tokenizer_name_or_path.")
        elif self.vocab_size is not None and not self.train_tokenizer:
            raise ValueError(f"vocab_size={self.vocab_size} has no effect without train_tokenizer.")
