"""QLoRA: weights with 4 and 8 bits by bitsandbytes, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sparsepo import SparsePOTrainer, load_mask
from sparsepo.cli.main import main
from tests.cli.conftest import SHORT_RUN, write_rows
from tests.support import preference_rows, tiny_model, tiny_tokenizer

from .running import (
    PLAIN_HEAD,
    assert_close,
    assert_same,
    logged,
    mask_state,
    moved,
    policy_state,
    prepared_rows,
    run_config,
    steps_of,
)

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

SGD = {"optim": "sgd", "learning_rate": 0.3}
HEAD = {"mask_learning_rate": 3.0, **PLAIN_HEAD}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some CPUs bitsandbytes packs weights anew for evaluation, which takes sizes that the tiny model has not."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", head_scale=3.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def four_bit() -> BitsAndBytesConfig:
    """4-bit weights whose arithmetic is in float32, so that runs compare closely."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=True,
    )


def adapter() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")


def trainer_of(
    folder: Path,
    base: Path,
    quantised: BitsAndBytesConfig | None = None,
    model: Any = None,
    **settings: Any,
) -> SparsePOTrainer:
    sets = prepared_rows(folder.parent / "rows", 11), prepared_rows(folder.parent / "rows", 5, seed=1)
    own = {
        **SGD,
        **(HEAD if settings.get("objective") != "mapo" else {}),
        "use_cpu": DEVICE == "cpu",
        "bf16": False,
        **settings,
    }
    if model is None:
        own["model_init_kwargs"] = {"dtype": "float32"}
    torch.manual_seed(0)  # of the adapter
    return SparsePOTrainer(
        str(base) if model is None else model,
        args=run_config(folder, **own),
        train_dataset=sets[0],
        eval_dataset=sets[1],
        processing_class=tiny_tokenizer(),
        quantization_config=quantised,
        peft_config=adapter(),
    )


def quantised_weights(trainer: SparsePOTrainer) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in trainer.model.named_parameters()
        if isinstance(parameter, bitsandbytes.nn.Params4bit | bitsandbytes.nn.Int8Params)
    }


@pytest.mark.parametrize("objective", ["sparsepo", "mapo"])
def test_adapter_and_mask_learn_and_the_quantised_weights_stay(tmp_path: Path, base: Path, objective: str) -> None:
    trainer = trainer_of(tmp_path / "run", base, four_bit(), objective=objective)
    frozen, adapters, masks = quantised_weights(trainer), policy_state(trainer), mask_state(trainer)
    assert len(frozen) == 14
    trainer.train()
    first = next(iter(logged(trainer)))
    assert first["kl/chosen"] == 0  # the reference is the policy without its adapter
    assert_same(frozen, quantised_weights(trainer))
    moved = [name for name, value in policy_state(trainer).items() if not torch.equal(value, adapters[name])]
    assert moved
    assert all("lora_" in name for name in moved)
    assert (objective == "mapo") or any(
        not torch.equal(value, masks[name]) for name, value in mask_state(trainer).items()
    )


def test_equals_lora_on_the_weights_that_the_bits_stand_for(tmp_path: Path, base: Path) -> None:
    trainer = trainer_of(tmp_path / "quantised", base, four_bit())
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, module in trainer.model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            own = plain.get_submodule(name.removeprefix("base_model.model.").removesuffix(".base_layer"))
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            own.weight.data.copy_(weight.cpu())
    other = trainer_of(tmp_path / "plain", base, model=plain)
    runs = []
    for run in (trainer, other):
        for name, parameter in run.model.named_parameters():
            if "lora_" in name:  # TRL has adapters of quantised weights in bfloat16
                parameter.data = parameter.data.bfloat16().float()
        run.train()
        runs.append((list(steps_of(logged(run))), mask_state(run), policy_state(run)))
    (steps, *states), (other_steps, *other_states) = runs
    for mine, theirs in zip(steps, other_steps, strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    for left, right in zip(states, other_states, strict=True):
        assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, base: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer_of(tmp_path / "whole", base, four_bit(), **saving)
    whole.train()
    resumed = trainer_of(tmp_path / "whole", base, four_bit(), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for part in (policy_state, mask_state):
        if DEVICE == "cpu":
            assert_same(part(whole), part(resumed))
        else:
            assert_close(part(whole), part(resumed), rtol=1e-4, atol=1e-6)


def test_the_best_adapter_and_mask_come_back(tmp_path: Path, base: Path) -> None:
    trainer = trainer_of(
        tmp_path / "run",
        base,
        four_bit(),
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl/chosen",  # the policy goes away from its reference: the first is the nearest
        greater_is_better=False,
    )
    types = {name: value.dtype for name, value in policy_state(trainer).items()}
    trainer.train()
    best = tmp_path / "run" / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    found = policy_state(trainer)
    assert {name: value.dtype for name, value in found.items()} == types
    saved = load_file(best / "adapter_model.safetensors")
    assert_same({name.replace(".default", ""): value.cpu() for name, value in found.items()}, saved)
    mask = dict(load_mask(best).state_dict())
    assert_same({name: value.cpu() for name, value in mask_state(trainer).items()}, mask)
    assert moved(mask, dict(load_mask(tmp_path / "run" / "checkpoint-4").state_dict())) > 1e-3


def test_the_reference_may_be_cached(tmp_path: Path, base: Path) -> None:
    found = []
    for name, cache in (
        ("uncached", {}),
        ("cached", {"precompute_ref": True, "precompute_ref_dir": str(tmp_path / "c")}),
    ):
        trainer = trainer_of(tmp_path / name, base, four_bit(), share_prefix="off", **cache)
        trainer.train()
        found.append(list(steps_of(logged(trainer))))
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_saved_is_loaded(tmp_path: Path, base: Path) -> None:
    trainer = trainer_of(tmp_path / "run", base, four_bit())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "saved", quantization_config=four_bit(), dtype=torch.float32, device_map=DEVICE
    ).eval()
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()  # as trained; PEFT loads them in float32
    policy = trainer.accelerator.unwrap_model(trainer.model).eval()
    tokens = torch.tensor([[5, 9, 4, 7, 12]], device=policy.device)
    with torch.no_grad():
        torch.testing.assert_close(policy(input_ids=tokens).logits, loaded(input_ids=tokens).logits)
    assert_same(dict(load_mask(tmp_path / "saved").state_dict()), {n: v.cpu() for n, v in mask_state(trainer).items()})


def test_the_command(tmp_path: Path, base: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", list(preference_rows(8)))
    command = ["train", "--model_name_or_path", str(base), "--dataset_name", str(tmp_path / "pairs.jsonl")]
    command += ["--output_dir", str(tmp_path / "out"), "--load_in_4bit", "--use_peft", "--lora_r=2"]
    assert main([*command, *(flag for flag in SHORT_RUN if flag != "--use_cpu" or DEVICE == "cpu")]) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    assert load_mask(tmp_path / "out").is_trainable


def test_the_command_goes_on_training_an_adapter(tmp_path: Path, base: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", list(preference_rows(8)))
    short = [flag for flag in SHORT_RUN if flag != "--use_cpu" or DEVICE == "cpu"]
    command = ["train", "--dataset_name", str(tmp_path / "pairs.jsonl"), "--load_in_4bit", "--logging_steps=1", *short]
    first, second = tmp_path / "first", tmp_path / "second"
    more = ["--use_peft", "--lora_r=2", "--learning_rate=1e-2", "--max_steps=3"]
    assert main([*command, "--model_name_or_path", str(base), "--output_dir", str(first), *more]) == 0
    assert main([*command, "--model_name_or_path", str(first), "--output_dir", str(second)]) == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert moved(before, after) > 0
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (first, second)]
    away, start = list(steps_of(logs[0]))[-1]["kl/chosen"], next(iter(steps_of(logs[1])))["kl/chosen"]
    assert abs(start) < 1e-5 < away  # the reference is the first adapter


def test_eight_bits(tmp_path: Path, base: Path) -> None:
    trainer = trainer_of(tmp_path / "run", base, BitsAndBytesConfig(load_in_8bit=True))
    frozen = quantised_weights(trainer)
    trainer.train()
    assert_same(frozen, quantised_weights(trainer))
    losses = [entry["loss"] for entry in steps_of(logged(trainer))]
    assert len(losses) == 3
    assert all(torch.isfinite(torch.tensor(losses)))
