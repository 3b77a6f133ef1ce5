"""Time, disk and advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sparsepo.masks import LearnedMask
from sparsepo.planning.advice import LARGE_CACHE, _changes, advise
from sparsepo.planning.devices import DEVICES, GIB, device_of
from sparsepo.planning.disk import plan_disk
from sparsepo.planning.memory import plan_memory
from sparsepo.planning.report import Plan, make_plan
from sparsepo.planning.settings import PlanSettings
from sparsepo.planning.shapes import ModelShape, config_by_hand, shape_of
from sparsepo.planning.timing import plan_time
from sparsepo.training.caching.plan import head_form as form_of
from sparsepo.training.caching.plan import plan_cache
from sparsepo.training.trl_bridge import lm_head_of


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return shape_of(config_by_hand(None, layers=2, hidden=256, vocab=8000), "small")


def run_of(**values: Any) -> PlanSettings:
    return PlanSettings(**{"prompt_tokens": 32, "response_tokens": 32, "max_length": 64, "pairs": 1000} | values)


def planned(shape: ModelShape, **values: Any) -> Plan:
    return make_plan(shape, run_of(**values), device_of("H100"))


def test_steps_and_total_time(shape: ModelShape) -> None:
    plan = planned(shape, epochs=2.0, batch_size=2, accumulation=5)
    assert plan.time.steps == 200
    assert plan.time.total == pytest.approx(200 * plan.time.step)
    assert planned(shape, epochs=2.0, batch_size=2, accumulation=5, sharding="ddp", devices=4).time.steps == 50


def test_more_work_takes_longer(shape: ModelShape) -> None:
    # large enough that launches are not what is waited for
    base: dict[str, Any] = {"prompt_tokens": 2048, "response_tokens": 2048, "max_length": 4096, "batch_size": 64}
    plan = planned(shape, **base)
    assert planned(shape, **base, checkpointing=False).time.step < plan.time.step
    assert planned(shape, **base, precompute_ref=True).time.step < plan.time.step
    assert planned(shape, **base | {"batch_size": 32}).time.step < plan.time.step < planned(
        shape, **base, precision="fp32").time.step  # fmt: skip
    record = plan.memory.record
    slower = replace(plan.device, bf16_flops=plan.device.bf16_flops / 2, bandwidth=plan.device.bandwidth / 2)
    assert plan_time(shape, plan.settings, record, slower).step == pytest.approx(2 * plan.time.step, rel=0.02)
    assert plan_time(shape, plan.settings, record, plan.device, utilisation=0.1).step > plan.time.step


def test_short_batches_are_bound_by_launches(shape: ModelShape) -> None:
    """Half the tokens take no less time where the kernels are too small to fill the device."""
    times = [planned(shape, prompt_tokens=n, response_tokens=n, max_length=2 * n).time.step for n in (8, 16)]
    assert times[0] == pytest.approx(times[1], rel=0.01)


def test_operations_are_those_of_the_usual_estimate() -> None:
    """6 operations a parameter and token, 2 more for checkpointing, 2 for the reference; head apart, attention small."""
    shape = shape_of(config_by_hand(None, layers=4, hidden=1024, vocab=1000), "model")
    settings = run_of(objective="dpo", mask="none")
    record = plan_memory(shape, settings, 80 * GIB).record
    blocks = shape.parameters - shape.embeddings
    expected = (2 + 2 + 4 + 2) * blocks * 2 * 64
    assert sum(record.flops.values()) - record.flops["head"] == pytest.approx(expected, rel=0.05)
    assert record.flops["head"] == 4 * 2 * (2 * 32) * 1024 * 1000


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("layers", ["all", "last"])
def test_disk_is_what_the_cache_keeps(lora: bool, layers: str) -> None:
    """The bytes of a token that training itself would keep for the same model and mask."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 97,
    }
    config = AutoConfig.for_model("llama", **sizes)
    model = AutoModelForCausalLM.from_config(config)
    masker = LearnedMask.for_model(model, layers=layers)
    kept = plan_cache(masker, need_kl=True, head=form_of(lm_head_of(model), lora, 4))
    disk = plan_disk(shape_of(config, "tiny"), run_of(lora=lora, mask_layers=layers))
    assert disk.token == kept.token_bytes()
    assert disk.tokens == 2 * 1000 * 32
    assert disk.head == (kept.head.nbytes if kept.needs_head else 0)
    assert disk.total == sum(disk.token.values()) * disk.tokens + disk.head


def test_advice_is_ranked_and_the_first_that_is_enough(shape: ModelShape) -> None:
    settings = run_of(checkpointing=False, batch_size=4, prompt_tokens=128, response_tokens=128, max_length=256)
    memory = plan_memory(shape, settings, 80 * GIB)
    small = (memory.total - 0.05 * GIB) / 0.92  # a device for which it is a little too much
    advice = advise(shape, settings, plan_memory(shape, settings, small), small)
    saved = [change.saved for change in advice.changes]
    assert saved == sorted(saved, reverse=True)
    assert all(value > 0 for value in saved)
    assert advice.together is not None
    *before, last = advice.together
    assert plan_memory(shape, last.settings, small).fits(small)
    assert all(not plan_memory(shape, change.settings, small).fits(small) for change in before)
    assert advice.together[0].flags == "--activation_checkpointing true"  # what costs least is tried first


def test_four_bits_are_advised_after_lora() -> None:
    shape = shape_of(config_by_hand(None, layers=4, hidden=1024, vocab=500), "deep")
    run = run_of()
    packed = plan_memory(shape, run.changed(lora=True, precision="bf16", load_in_4bit=True), 80 * GIB)
    small = (packed.total + 0.01 * GIB) / 0.92
    for settings in (run, run.changed(lora=True)):
        advice = advise(shape, settings, plan_memory(shape, settings, small), small)
        flags = "--load_in_4bit true --dtype bfloat16"
        assert (flags if settings.lora else f"--use_peft true {flags}") in [change.flags for change in advice.changes]
        assert advice.together is not None
        assert [change.flags for change in advice.together][-1] == flags
    smaller = (advice.together[-1].memory - 1) / 0.92  # a byte too little: more devices come next
    together = advise(shape, settings, plan_memory(shape, settings, smaller), smaller).together
    assert together is not None
    assert together[-1].flags == "--accelerate_config fsdp2 --num_processes 8 --bnb_4bit_quant_storage bfloat16"
    sharded = run.changed(lora=True, load_in_4bit=True, precision="bf16")
    (more,) = _changes("more", sharded, 0.0)
    assert more["flags"] == "--accelerate_config fsdp2 --num_processes 8 --bnb_4bit_quant_storage bfloat16"


def test_a_device_that_is_too_small_for_anything(shape: ModelShape) -> None:
    settings = run_of()
    advice = advise(shape, settings, plan_memory(shape, settings, 0.1 * GIB), 0.1 * GIB)
    assert advice.changes
    assert advice.together is None


def test_a_huge_cache_is_listed_but_not_taken(shape: ModelShape) -> None:
    settings = run_of(pairs=10_000_000)
    assert plan_disk(shape, settings).total > LARGE_CACHE
    memory = plan_memory(shape, settings, 80 * GIB)
    small = (memory.total - 0.001 * GIB) / 0.92
    advice = advise(shape, settings, memory, small)
    assert "--precompute_ref true" in [change.flags for change in advice.changes]
    assert advice.together is not None
    assert "--precompute_ref true" not in [change.flags for change in advice.together]


def test_every_device_has_its_numbers_and_their_source() -> None:
    for device in DEVICES.values():
        assert 20 * GIB < device.memory < 300 * GIB
        assert 5e13 < device.bf16_flops < 5e15
        assert device.source
    assert device_of("h100") is device_of("H100")
    assert device_of("a100 80gb") is device_of("A100")
