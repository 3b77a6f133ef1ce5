"""A small tokenizer and a small language model of the sentiment world, and its supervised training (SFT).

Both are ordinary Hugging Face objects: they save, load through the Auto classes and need no network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from .world import Review, World

ARCHITECTURES = ("gpt2", "llama")
# Progress of a training run: step, number of steps, latest logged values
StepCallback = Callable[[int, int, dict[str, float]], None]
MAX_POSITIONS = 128
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """One token a word. Text is split at white space, so it reads back exactly when words are separated by single
    spaces (a response's leading space is the separator and is not a token)."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate((PAD, EOS, UNKNOWN, *world.vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    architecture: str = "gpt2",
    seed: int = 0,
    hidden_size: int = 96,
    layers: int = 3,
    heads: int = 4,
) -> PreTrainedModel:
    """A small causal LM with random weights, tied embeddings and no dropout (0.37M parameters by default).

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        architecture: ``gpt2`` or ``llama``.
        seed: of the weights; the global random state is left as it was.
        hidden_size: model width.
        layers: number of blocks.
        heads: attention heads.

    Raises:
        ValueError: unknown architecture.
    """
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
    config: GPT2Config | LlamaConfig
    if architecture == "gpt2":
        config = GPT2Config(
            n_positions=MAX_POSITIONS,
            n_embd=hidden_size,
            n_layer=layers,
            n_head=heads,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **shared,
        )
    elif architecture == "llama":
        config = LlamaConfig(
            max_position_embeddings=MAX_POSITIONS,
            hidden_size=hidden_size,
            intermediate_size=8 * hidden_size // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            **shared,
        )
    else:
        raise ValueError(f"architecture={architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


class ProgressCallback(TrainerCallback):
    """Reports each optimiser step of a transformers Trainer to a function."""

    def __init__(self, report: StepCallback) -> None:
        self.report = report
        self.latest: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.latest |= {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step, state.max_steps, self.latest)


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    reviews: list[Review],
    output_dir: str | Path,
    *,
    epochs: float = 3,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    on_step: StepCallback | None = None,
) -> PreTrainedModel:
    """Supervised training with TRL's SFTTrainer: loss on the response, end token included.

    The result is saved to ``output_dir`` with the tokenizer and loaded from there, so what is returned is a plain
    model without anything a trainer may have attached to it.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    output_dir = Path(output_dir)
    data = Dataset.from_list([{"prompt": r.prompt, "completion": r.response} for r in reviews])
    args = SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        max_length=MAX_POSITIONS,
        activation_checkpointing=False,
        bf16=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    quieten(trainer)
    if on_step is not None:
        trainer.add_callback(ProgressCallback(on_step))
    trainer.train()
    # not trainer.save_model, which leaves a pickle of its arguments beside the model
    trainer.model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return AutoModelForCausalLM.from_pretrained(output_dir)


def quieten(trainer: Any) -> None:
    """Stop a transformers Trainer from printing its logs (with tqdm off it prints every one of them)."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
