"""Mixed and half precision in the trainer's own loop, on a CPU: bf16 is the default wherever a GPU has it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from sparsepo import SparsePOConfig, SparsePOTrainer
from tests.support import preference_rows, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("scorer", ["fused", "dense"])
def test_bf16_trains(tmp_path, weights, lora, scorer):
    trainer = SparsePOTrainer(
        tiny_model("llama").to(weights),
        args=SparsePOConfig(
            str(tmp_path),
            bf16=True,
            use_cpu=True,
            scorer=scorer,
            max_steps=2,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=preference_rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2) if lora else None,
    )
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert abs(first["kl/chosen"]) < 1e-4  # the policy is still the reference
    assert second["grad_norm"] > 0
    assert all(parameter.dtype == torch.float32 for parameter in trainer.masker.parameters())
