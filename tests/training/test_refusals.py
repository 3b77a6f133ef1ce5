"""What cannot work is refused at construction, and the message says why and what to do."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSeq2SeqLM, ProcessorMixin
from trl import DPOConfig

from sparsepo import LearnedMask, SparsePOConfig, SparsePOTrainer
from tests.support import preference_rows, tiny_model, tiny_tokenizer


def build(tmp_path, model=None, rows=None, settings=None, **arguments):
    args = SparsePOConfig(str(tmp_path), report_to="none", **(settings or {}))
    arguments.setdefault("processing_class", tiny_tokenizer())
    model = tiny_model() if model is None else model
    return SparsePOTrainer(model, args=args, train_dataset=preference_rows(4) if rows is None else rows, **arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding_free": True}, "padding_free=True is not supported: TRL 1.16 has no padding-free DPO"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs=True is not supported: it stores one sum"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5 is not supported"),
        ({"f_divergence_type": "forward_kl"}, "f_divergence_type='forward_kl' is not supported"),
        ({"use_weighting": True}, "use_weighting=True is not supported: WPO"),
        ({"loss_weights": [1.0]}, r"loss_weights=\[1.0\] is not supported"),
        ({"torch_compile": True}, "torch_compile=True is not supported"),
        ({"fp16_full_eval": True}, "fp16_full_eval=True would cast the mask head"),
    ],
)
def test_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, settings=settings)


def test_trl_config_is_not_enough(tmp_path):
    with pytest.raises(TypeError, match="args must be a SparsePOConfig, got DPOConfig"):
        SparsePOTrainer(tiny_model(), args=DPOConfig(str(tmp_path), bf16=False), train_dataset=preference_rows(4))


def test_vision_processor(tmp_path):
    class Processor(ProcessorMixin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="processing_class=Processor belongs to a vision-language model"):
        build(tmp_path, processing_class=Processor())


def test_image_columns(tmp_path):
    rows = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c", "image": "x"}])
    with pytest.raises(ValueError, match="training dataset has an image column"):
        build(tmp_path, rows=rows)


def test_empty_dataset(tmp_path):
    with pytest.raises(ValueError, match="training dataset has no rows"):
        build(tmp_path, rows=Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}))


def test_encoder_decoder(tmp_path):
    config = AutoConfig.for_model(
        "t5", vocab_size=99, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(ValueError, match="is an encoder-decoder; only causal language models work"):
        build(tmp_path, model=AutoModelForSeq2SeqLM.from_config(config))


def test_prompt_learning(tmp_path):
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="peft_config=PromptTuningConfig is prompt learning"):
        build(tmp_path, peft_config=tuning)
    with pytest.raises(ValueError, match="is prompt learning: its virtual tokens shift every position"):
        build(tmp_path, model=get_peft_model(tiny_model(), tuning))


def test_head_adapter(tmp_path):
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="target_modules contains 'lm_head'"):
        build(tmp_path, model=tiny_model("llama"), peft_config=adapter)
    with pytest.raises(ValueError, match="An adapter on the LM head is not supported"):
        build(tmp_path, model=get_peft_model(tiny_model("llama"), adapter))


def test_other_vocabulary_of_the_reference(tmp_path):
    with pytest.raises(ValueError, match="policy's vocabulary has 99 entries and the reference's 98"):
        build(tmp_path, ref_model=tiny_model(vocab_size=98))


def test_same_object_as_reference(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="cannot be the same object"):
        build(tmp_path, model=model, ref_model=model)


def test_mask_of_another_size(tmp_path):
    with pytest.raises(ValueError, match="32"):
        build(tmp_path, mask=LearnedMask(hidden_size=48, num_layers=2))
    with pytest.raises(ValueError, match="layers"):
        build(tmp_path, mask=LearnedMask(hidden_size=32, num_layers=5))


def test_mask_beside_settings_that_describe_another(tmp_path):
    with pytest.raises(ValueError, match="mask_init='ones' has no effect with a mask handed to the trainer"):
        build(tmp_path, settings={"mask_init": "ones"}, mask=LearnedMask(hidden_size=32, num_layers=2))
    with pytest.raises(ValueError, match="objective='dpo' reads no mask"):
        build(tmp_path, settings={"objective": "dpo"}, mask=LearnedMask(hidden_size=32, num_layers=2))


def test_optimizer_without_the_mask_head(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="does not hold the mask head's parameters"):
        build(tmp_path, model=model, optimizers=(optimizer, None))


def test_attention_group_of_a_model_without_attention(tmp_path):
    with pytest.raises(ValueError, match="attn"):
        build(tmp_path, model=tiny_model("mamba"), settings={"objective": "mapo", "mask_activation_groups": ["attn"]})


def test_weights_columns_are_asked_for_by_name(tmp_path):
    with pytest.raises(ValueError, match="train dataset has no 'chosen_weights'"):
        build(tmp_path, settings={"mask": "data"})
