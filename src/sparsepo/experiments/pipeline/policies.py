"""The evaluation of a run: what its policy writes on held-out prompts, its reward, how far it moved, and its masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo.loading import load_model, load_tokenizer, sampling_device

from .jobs import Job, Row, read_lines, write_lines
from .task_evaluations import further_metrics, reward_of


def evaluate(job: Job) -> Row:
    """Sample, reward, KL, tokens.

    Every sample is kept in ``samples.jsonl`` with its prompt, seed, reward and KL.
    """
    from sparsepo.evaluation.generation import sample_completions

    own, is_start = job.settings, "train" not in job.inputs
    tokenizer = load_tokenizer(job.model())
    reference = load_policy(job.model())
    policy = reference if is_start else load_policy(job.model("train"))
    rows, left_out = _prompts(job, tokenizer)
    groups = sample_completions(
        policy,
        tokenizer,
        [row["prompt"] for row in rows],
        max_new_tokens=own["max_new_tokens"],
        samples_per_prompt=own["samples"],
        temperature=own["temperature"],
        top_p=own["top_p"],
        seed=own["seed"],
        batch_size=own["batch_size"],
    )
    flat = [(number, sample) for number, group in enumerate(groups) for sample in group]
    kls = _divergences(job, policy, reference, [sample for _, sample in flat])
    texts = [sample.text for _, sample in flat]
    own_rows = [rows[number] for number, _ in flat]
    reward = reward_of(job)(own_rows, texts)
    write_lines(
        job.folder / "samples.jsonl",
        (
            {
                "prompt_number": number,
                "sample": place % own["samples"],
                "seed": own["seed"],
                "prompt": row["prompt"],
                "text": sample.text,
                "finished": sample.finished,
                "tokens": len(sample.token_ids),
                "reward": float(reward[place]),
                **{name: float(values[place]) for name, values in kls.items()},
            }
            for place, ((number, sample), row) in enumerate(zip(flat, own_rows, strict=True))
        ),
    )
    metrics = {
        **_mean_and_error("reward", reward, len(rows)),
        **{key: value for name in kls for key, value in _mean_and_error(name, kls[name], len(rows)).items()},
        "length": float(np.mean([len(sample.token_ids) for _, sample in flat])),
        "finished": float(np.mean([sample.finished for _, sample in flat])),
        **further_metrics(job, own_rows, texts, reward),
    }
    if own.get("yardstick") and not is_start:
        from .token_ranking import rank_tokens

        metrics |= rank_tokens(job, policy, reference, tokenizer)
    told = f"reward {metrics['reward']:.3f} at KL {metrics['sequence_kl']:.3f}"
    if "mask_auc" in metrics:
        told += f", mask AUC {metrics['mask_auc']:.3f}"
    return {"metrics": metrics, "prompts": len(rows), "prompts_left_out": left_out, "summary": told}


def _divergences(job: Job, policy: Any, reference: Any, samples: Sequence[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """``sequence_kl`` (exact over the vocabulary), ``monte_carlo_kl``, and ``masked_sequence_kl`` where there is a mask."""
    from sparsepo.evaluation.kl import MASKS_OF_TEXTS, divergences
    from sparsepo.masks import load_mask

    if policy is reference:
        return {name: np.zeros(len(samples)) for name in ("sequence_kl", "monte_carlo_kl")}
    folder = Path(job.model("train"))
    masker = load_mask(folder) if (folder / "mask" / "mask.json").is_file() else None
    if masker is not None and masker.kind not in MASKS_OF_TEXTS:
        masker = None  # drawn for rows of data; a sample has none
    found = divergences(
        policy,
        reference,
        samples,
        masker=None if masker is None else masker.to(reference.device),
        batch_size=job.settings["batch_size"],
    )
    kls = {"sequence_kl": found.kl, "monte_carlo_kl": found.log_ratio, "masked_sequence_kl": found.masked_kl}
    return {name: value.numpy() for name, value in kls.items() if value is not None}


def load_policy(name: str) -> Any:
    """A model, or an adapter on its base, where it samples."""
    return load_model(name).to(sampling_device())


def _prompts(job: Job, tokenizer: Any) -> tuple[list[Row], int]:
    """The first held-out prompts that leave room for an answer, and how many longer ones stood before their end."""
    own = job.settings
    if job.stage.settings.get("world"):
        from sparsepo.playground.world import World

        texts = World().prompts(own["prompts"], own["seed"], "evaluation")
        return [{"prompt": text} for text in texts], 0
    rows: list[Row] = []
    left_out = 0
    for row in read_lines(Path(job.inputs["data"]) / "prompts.jsonl"):
        limit = own.get("max_prompt_tokens")
        if limit is not None and _length(tokenizer, row["prompt"]) > limit:
            left_out += 1
            continue
        rows.append(row)
        if len(rows) == own["prompts"]:
            break
    if not rows:
        raise ValueError(
            f"All {left_out} held-out prompts are longer than evaluate.max_prompt_tokens={own['max_prompt_tokens']}; "
            "raise it."
        )
    return rows, left_out


def _length(tokenizer: Any, prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def _mean_and_error(name: str, values: Sequence[float] | np.ndarray[Any, Any], prompts: int) -> dict[str, float]:
    """The mean, and its standard error over prompts: the samples of a prompt are not independent of each other."""
    by_prompt = np.asarray(values, dtype=np.float64).reshape(prompts, -1).mean(1)
    found = {name: float(by_prompt.mean())}
    if prompts > 1:
        found[f"{name}_se"] = float(by_prompt.std(ddof=1) / np.sqrt(prompts))
    return found
