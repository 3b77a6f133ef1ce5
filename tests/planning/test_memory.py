"""Plans of memory against real steps on the CPU, measured ones on a GPU, and what must hold for any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from sparsepo.planning.devices import GIB, device_of
from sparsepo.planning.fake_step import record_step
from sparsepo.planning.memory import plan_memory
from sparsepo.planning.settings import PlanSettings
from sparsepo.planning.shapes import ModelShape, config_by_hand, config_of, shape_of

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MIB = 1 << 20
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 97, "n_positions": 64},
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                 "vocab_size": 97, "max_position_embeddings": 64},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 48, "vocab_size": 97, "tie_word_embeddings": True},
    "gemma2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
               "intermediate_size": 48, "vocab_size": 97, "head_dim": 16},
    "mixtral": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                "intermediate_size": 48, "vocab_size": 97, "num_local_experts": 2},
}  # fmt: skip
PYTHIA = {"model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
          "intermediate_size": 8192, "vocab_size": 50304, "max_position_embeddings": 2048}  # fmt: skip


def tiny_shape(kind: str) -> ModelShape:
    return shape_of(AutoConfig.for_model(kind, **TINY[kind]), kind)


def run_of(length: int = 32, **values: Any) -> PlanSettings:
    return PlanSettings(**{"prompt_tokens": length // 2, "response_tokens": length // 2, "max_length": length,
                           "padded": False} | values)  # fmt: skip


@pytest.mark.parametrize("kind", list(TINY))
def test_counts_are_those_of_the_model(kind: str) -> None:
    shape, model = tiny_shape(kind), AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY[kind]))
    assert shape.parameters == model.num_parameters()
    assert (shape.vocabulary, shape.hidden_size) == tuple(model.get_output_embeddings().weight.shape)
    assert shape.is_tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert shape.embeddings + 2 * shape.largest_block == shape.parameters  # two equal blocks


@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "mixtral"])  # whose routing needs values
def test_states_are_exact(kind: str) -> None:
    """Weights, gradients and optimiser states of a plan, and those of a model."""
    shape = tiny_shape(kind)
    record = record_step(shape, run_of(precision="fp32"), 32, 16, on_gpu=False)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY[kind]))
    rounded = sum(-(-4 * p.numel() // 512) * 512 for p in model.parameters())
    assert record.weights == record.reference == record.trainable_bytes == rounded
    assert record.trainable == model.num_parameters()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "mixtral"])
def test_weights_of_four_bits_are_exact(tmp_path: Path, kind: str, double: bool) -> None:
    """What transformers and bitsandbytes load."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY[kind])).save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, dtype=torch.bfloat16)
    held = [(p.data, getattr(p, "quant_state", None)) for p in model.parameters()]
    assert any(state is not None for _, state in held)
    tensors = [tensor for tensor, _ in held]
    for state in (state for _, state in held if state is not None):
        tensors += [state.absmax, *((state.state2.absmax,) if double else ())]
    settings = run_of(precision="bf16", lora=True, load_in_4bit=True, double_quant=double)
    record = record_step(tiny_shape(kind), settings, 32, 16, on_gpu=False)
    codes = 512 * (1 + double) * sum(state is not None for _, state in held)
    rounded = sum(-(-t.nbytes // 512) * 512 for t in tensors)
    assert record.weights - record.trainable_bytes == pytest.approx(rounded + codes, abs=codes)
    assert 0 < record.scales < record.weights
    assert record.trainable_bytes < 2 * record.trainable + 512 * len(tensors) * 2


def test_four_bits_save_memory_and_are_shared_out() -> None:
    shape = shape_of(config_by_hand(None, layers=4, hidden=512, vocab=1000), "llama")
    run = run_of(128, lora=True, precision="bf16")
    whole, packed = (plan_memory(shape, run.changed(load_in_4bit=bits), 80 * GIB) for bits in (False, True))
    numbers = 2 * (shape.parameters - shape.embeddings)
    assert whole.parts["weights"] - packed.parts["weights"] == pytest.approx(
        numbers * (1 - (0.5 + 4 / 64) / 2) + 2 * packed.record.trainable, rel=0.01)  # fmt: skip
    assert packed.record.flops == whole.record.flops
    written = packed.record.traffic["reference"] - whole.record.traffic["reference"]  # unpacked once, without adapters
    assert written == pytest.approx(numbers, rel=0.01)
    shares = [plan_memory(shape, run.changed(load_in_4bit=True, sharding="fsdp2", devices=n), 80 * GIB).parts["weights"]
              for n in (2, 4)]  # fmt: skip
    scales = packed.record.scales
    assert shares[0] - scales == pytest.approx(2 * (shares[1] - scales))
    assert shares[0] == pytest.approx((packed.parts["weights"] - scales) / 2 + scales, rel=0.01)


def test_measured_steps_on_a_gpu_lie_within_a_tenth() -> None:
    """Pythia-1.4B trained with SparsePO and DPO through the trainer on an H200 (benchmarks/results/gpu_pythia.json)."""
    rows = [
        {row["variant"]: row["peak_mib"] for row in part["rows"]}
        for part in json.loads((RESULTS / "gpu_pythia.json").read_text())["parts"]["pythia"]
    ]
    shape = shape_of(AutoConfig.for_model(**PYTHIA), "Pythia-1.4B")
    for measured, length, name, values in (
        (rows[0], 512, "DPO (ours), share_prefix=off", {"objective": "dpo", "mask": "none"}),
        (rows[1], 2048, "SparsePO, share_prefix=off", {}),
    ):
        plan = plan_memory(shape, run_of(length, batch_size=2, **values), device_of("H200").memory)
        parts = plan.parts
        extra = plan.allocated - sum(parts[part] for part in ("weights", "reference", "optimizer", "workspace"))
        assert extra / MIB == pytest.approx(measured[name], rel=0.1), (name, length)


def shape_of_size() -> ModelShape:
    """Large enough that the budget of the scorer is not all there is."""
    return shape_of(config_by_hand(None, layers=2, hidden=512, vocab=32000), "llama")


def test_what_saves_memory_saves_it() -> None:
    shape = shape_of_size()
    run = run_of(128, batch_size=4)
    total = {name: plan_memory(shape, run.changed(**changes), 80 * GIB).total for name, changes in {
        "as it is": {}, "LoRA": {"lora": True}, "no checkpointing": {"checkpointing": False}, "one pair": {"batch_size": 1},
        "half": {"precision": "bf16"}, "float32": {"precision": "fp32"}, "cache": {"precompute_ref": True},
        "8 bits": {"optimizer": "adamw_8bit"}, "no mask": {"objective": "dpo", "mask": "none"},
        "accumulated": {"accumulation": 2}, "ddp": {"sharding": "ddp", "devices": 2},
        "longer": {"max_length": 256},
    }.items()}  # fmt: skip
    smaller, larger = ("LoRA", "one pair", "half", "cache", "8 bits", "no mask"), ("no checkpointing", "ddp", "longer")
    for name in smaller:
        assert total[name] < total["as it is"], name
    for name in larger:
        assert total[name] > total["as it is"], name
    assert total["accumulated"] >= total["as it is"]


@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
@pytest.mark.parametrize("lora", [False, True])
def test_shares_of_states_fall_with_the_number_of_devices(sharding: str, lora: bool) -> None:
    shape = shape_of_size()
    plans = [plan_memory(shape, run_of(128, sharding=sharding, devices=n, lora=lora), 80 * GIB) for n in (2, 4)]
    for part in ("weights", "gradients", "reference"):
        assert plans[0].parts[part] == pytest.approx(2 * plans[1].parts[part]), part
    assert plans[0].parts["optimizer"] > plans[1].parts["optimizer"]
    assert plans[0].parts["activations"] == plans[1].parts["activations"]


def test_sharded_states_of_one_device_are_whole() -> None:
    """FSDP2 over one device holds what a single one does."""
    shape = shape_of_size()
    alone = plan_memory(shape, run_of(128, accumulation=2), 80 * GIB).parts
    sharded = plan_memory(shape, run_of(128, accumulation=2, sharding="fsdp2"), 80 * GIB).parts
    for part in ("weights", "reference", "gradients", "optimizer"):
        assert sharded[part] == pytest.approx(alone[part], rel=0.01), part


def test_zero2_splits_gradients_and_states_only() -> None:
    shape = shape_of_size()
    parts = [plan_memory(shape, run_of(128, sharding="zero2", devices=n), 80 * GIB).parts for n in (2, 4)]
    assert parts[0]["weights"] == parts[1]["weights"]
    assert parts[0]["gradients"] == 2 * parts[1]["gradients"]


@pytest.mark.parametrize("params", [1e8, 7e9, 70e9])
def test_models_by_hand_have_the_parameters_that_were_asked_for(params: float) -> None:
    layers, hidden = {1e8: (12, 512), 7e9: (32, 4096), 70e9: (80, 8192)}[params]
    shape = shape_of(config_by_hand(params, layers, hidden, 32000), "by hand")
    assert shape.parameters == pytest.approx(params, rel=0.01)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="less than what embeddings and attention"):
        config_by_hand(1e6, 12, 768, 50000)
    with pytest.raises(ValueError, match="multiple of heads=7"):
        config_by_hand(None, 2, 32, 100, heads=7)
    for values, named in (
        ({"batch_size": 0}, "batch_size=0"), ({"precision": "int8"}, "precision='int8'"),
        ({"devices": 2}, "need a sharding"), ({"prompt_tokens": 40}, "more than max_length"),
        ({"load_in_4bit": True}, "needs lora=True"),
        ({"load_in_4bit": True, "lora": True, "sharding": "zero3"}, "cannot be planned"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            run_of(32, **values)
    with pytest.raises(ValueError, match="did you mean H100"):
        device_of("H10")


def test_a_config_is_read_from_a_file_and_a_folder(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **TINY["llama"])
    config.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        assert shape_of(config_of(str(source)), "x").parameters == tiny_shape("llama").parameters
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no model_type"):
        config_of(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        config_of(str(tmp_path / "config.json"))


def test_nothing_is_allocated() -> None:
    """A model of 70 billion parameters is followed without its memory."""
    config = config_by_hand(None, layers=2, hidden=8192, vocab=128256)
    record = record_step(shape_of(config, "wide"), run_of(64), 64, 32)
    assert record.weights > 8 * GIB
    assert all(not isinstance(value, torch.Tensor) for value in vars(record).values())
