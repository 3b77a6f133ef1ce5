"""Sizes and settings of the demo."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs, in the order of its stages.

    Args:
        objective: a name of ``sparsepo.objectives``.
        seed: of texts, weights, samples and training.
        architecture: ``gpt2`` or ``llama``.
        texts: reviews for supervised training.
        sft_epochs, sft_learning_rate, sft_batch_size: of supervised training.
        prompts: prompts sampled for training pairs.
        held_out_prompts: prompts sampled for the pairs on which the masks are judged.
        samples: responses a prompt, of which the best and the worst make a pair.
        evaluation_prompts: fresh prompts, one response each, on which the policy is judged before and after.
        steps, batch_size: of preference training, in optimiser steps and pairs a step.
        learning_rate, beta: of preference training.
        kl_anchor: λ of the KL anchor.
        mask_target_sparsity: share of tokens whose masks are to become exactly zero; None: the library's default.
        shown: held-out pairs shown with their masks.
    """

    objective: str = "sparsepo"
    seed: int = 0
    architecture: str = "gpt2"
    texts: int = 8000
    sft_epochs: float = 2
    sft_learning_rate: float = 3e-3
    sft_batch_size: int = 32
    prompts: int = 2000
    held_out_prompts: int = 256
    samples: int = 4
    evaluation_prompts: int = 1024
    steps: int = 250
    batch_size: int = 12
    learning_rate: float = 2e-4
    beta: float = 0.5
    kl_anchor: float = 0.1
    mask_target_sparsity: float | None = 0.6
    shown: int = 3

    def fast(self) -> DemoSettings:
        """The same in a few seconds: every stage runs, nothing is learned well."""
        return replace(
            self,
            texts=256,
            sft_epochs=1,
            sft_batch_size=16,
            prompts=32,
            held_out_prompts=16,
            evaluation_prompts=32,
            steps=4,
            batch_size=4,
            shown=1,
        )
