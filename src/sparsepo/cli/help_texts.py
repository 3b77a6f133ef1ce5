"""Short help of the commands whose flags are TRL's hundreds: what one needs first, printed without importing anything."""

from __future__ import annotations

from dataclasses import dataclass

Flags = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HelpText:
    """Help of one command. ``groups``: title → flags and what they mean (a test compares the flags with the parser)."""

    usage: str
    about: str
    groups: dict[str, Flags]
    examples: str


_RUN: Flags = (
    ("--config", "recipe: a YAML file of settings; flags override it"),
    ("--output_dir", "folder of the run"),
    ("--overwrite_output_dir", "replace the run that output_dir holds"),
    ("--resume_from_checkpoint", "auto (the last checkpoint, if any), last, or a folder"),
    ("--accelerate_config", "several processes: ddp, fsdp2, zero2, zero3 or a file; --num_processes N"),
)
_LOOP: Flags = (
    ("--learning_rate", "of the policy"),
    ("--num_train_epochs", "or --max_steps"),
    ("--per_device_train_batch_size", "× --gradient_accumulation_steps × processes = rows a step"),
    ("--warmup_steps", "below 1: a share of all steps"),
    ("--lr_scheduler_type", "linear, cosine, constant, …"),
    ("--max_length", "tokens kept of prompt and response together"),
    ("--eval_strategy", "no, steps or epoch"),
    ("--save_strategy", "no, steps, epoch or best"),
    ("--logging_steps", "steps between two log lines"),
    ("--report_to", "none, tensorboard, wandb, …"),
    ("--seed", "of everything random"),
)
_MODEL: Flags = (
    ("--dtype", "float32 (default), bfloat16, float16 or auto"),
    ("--use_peft", "LoRA; --lora_r, --lora_alpha, --lora_dropout, --lora_target_modules"),
    ("--load_in_4bit", "quantised base model (needs bitsandbytes); or --load_in_8bit"),
)

TRAIN_HELP = HelpText(
    usage="sparsepo train [--config RECIPE.yaml] --model_name_or_path MODEL --dataset_name PAIRS --output_dir OUT [flags]",
    about="Train on preference pairs. Takes every flag of TRL's DPO, and the ones of token masks.",
    groups={
        "run": _RUN,
        "data": (
            (
                "--dataset_name",
                "file (JSONL, Parquet, CSV, also .gz), folder, or hub id: pairs, HH dialogues, scored texts",
            ),
            ("--eval_dataset", "evaluation pairs; or --eval_fraction 0.05; or the data set's test split"),
            ("--dataset_train_split", "and --dataset_test_split, as in datasets: train[:1000]"),
            ("--dataset_dir", "folder inside a hub data set (harmless-base)"),
            ("--rename", "columns: question=prompt answer=chosen"),
            ("--pairs", "scored texts: best_worst, all or threshold; --pairs_margin, --pairs_cap"),
            ("--strict", "stop where a row would be dropped; --max_dropped SHARE; --max_lost SHARE"),
            ("--max_prompt_length", "keep only the last tokens of a prompt"),
        ),
        "objective": (
            ("--objective", "sparsepo, mapo, tdpo1, tdpo2, dpo, simpo or dpop"),
            ("--preset", "published: what you leave unset as the paper's code has it"),
            ("--beta", "β of the implicit reward; also --alpha (tdpo2), --gamma (simpo), --lam (dpop)"),
            ("--loss_type", "link: sigmoid, hinge, ipo or robust; --label_smoothing"),
            ("--kl_anchor", "λ of a KL over all response tokens, for every objective"),
            ("--sft_weight", "weight of −log π(chosen) per token"),
            ("--ref_model_name_or_path", "another reference than the start of the policy"),
            ("--precompute_ref", "true: run the reference once and keep its numbers on disk (docs/performance.md)"),
        ),
        "masks": (
            ("--mask", "learned, activation, dense, random or data (weights in your data)"),
            ("--mask_sharing", "common: one mask for reward and KL; independent: one each"),
            ("--mask_on", "both, reward or kl"),
            ("--mask_init", "ones, published or mapo"),
            (
                "--mask_learning_rate",
                "unset: a multiple of learning_rate (docs/masks.md); --mask_weight_decay, --mask_dropout",
            ),
            ("--mask_gate", "relu, clamped, normalised, binary, hard_concrete, topk, entmax … (docs/masks.md)"),
            ("--mask_log_ratio_weight", "fit of the masks to the policy's log-ratios; 0: the paper's loss alone"),
            ("--mask_target_sparsity", "share of exact zeros to reach and hold, e.g. 0.8"),
            ("--mask_l1_reward", "L1 weight, drives masks to zero; --mask_l1_kl"),
            ("--mask_on_failure", "stop: end training when a mask fails; warn (default): only say so"),
            ("--mask_activation_groups", "activation masks: mlp attn resid logits"),
        ),
        "model": (("--model_name_or_path", "folder or hub id of the start (the SFT model)"), *_MODEL),
        "training": _LOOP,
        "pages": (
            ("--inspect_pairs", "held-out pairs whose masks are kept while training: OUT/masks.html (4; 0: none)"),
            ("--sample_prompts", "FILE: sample these prompts while training; --sample_every N, --sample_reward SPEC"),
            ("--report", "false: no OUT/report.html at the end"),
            ("--content_filter", "mask offensive words in terminal and pages; --content_words FILE: these too"),
        ),
    },
    examples="""  sparsepo train --config recipes/quickstart.yaml --model_name_or_path MODEL \\
      --dataset_name pairs.jsonl --output_dir out
  sparsepo train --model_name_or_path MODEL --dataset_name Anthropic/hh-rlhf --dataset_dir harmless-base \\
      --objective sparsepo --mask_sharing independent --beta 0.1 --use_peft --learning_rate 1e-4 --output_dir out
  sparsepo train --config recipes/hh_common.yaml --accelerate_config ddp --num_processes 4""",
)

SFT_HELP = HelpText(
    usage="sparsepo sft [--config RECIPE.yaml] --model_name_or_path MODEL --dataset_name TEXTS --output_dir OUT [flags]",
    about="Supervised fine-tuning with TRL's SFTTrainer; or a small model and its tokenizer from nothing but texts.",
    groups={
        "run": _RUN,
        "data": (
            (
                "--dataset_name",
                "file, folder or hub id: text; prompt and completion (or text, chosen); dialogues; messages",
            ),
            ("--text_files", "several local files instead: JSONL and the like, .txt, .zip of text files, folders"),
            ("--eval_dataset", "evaluation texts; or --eval_fraction 0.02"),
            ("--completion_only_loss", "false: learn the prompts too"),
            ("--packing", "pack several texts into one row"),
        ),
        "start": (
            ("--model_name_or_path", "folder or hub id"),
            ("--init_from_config", "random weights: gpt2-1m, gpt2-4m, llama-1m, llama-4m, or a config.json"),
            ("--train_tokenizer", "with it: byte-level BPE trained on the texts, --vocab_size 4096"),
            ("--tokenizer_name_or_path", "with it: an existing tokenizer"),
            *_MODEL,
        ),
        "training": _LOOP,
    },
    examples="""  sparsepo sft --config recipes/sft_small.yaml --text_files reviews.zip scored.jsonl.gz --output_dir sft
  sparsepo sft --config recipes/sft_hh.yaml""",
)


def print_help(text: HelpText) -> int:
    """Print a help text. Returns 0."""
    lines = [f"usage: {text.usage}", "", text.about]
    for title, flags in text.groups.items():
        lines += ["", f"{title}:"]
        lines += [f"  {flag:<31} {meaning}" for flag, meaning in flags]
    command = " ".join(text.usage.split()[:2])
    lines += ["", "examples:", text.examples, "", f"All flags, TRL's included: {command} --help-all"]
    print("\n".join(lines))
    return 0
