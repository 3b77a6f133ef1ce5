"""The cache's key, what is kept, and how much that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from sparsepo import ActivationMask, LearnedMask
from sparsepo.masks import Masker
from sparsepo.training.caching import cache as cache_module
from sparsepo.training.caching import store
from sparsepo.training.caching.fingerprint import hash_tensors, hash_tokenizer, read_rows, weight_files
from sparsepo.training.caching.plan import CachePlan, HeadForm, check_estimate, plan_cache
from sparsepo.training.collator import PreferenceCollator
from tests.support import preference_rows, tiny_model, tiny_tokenizer

from .cache_runs import (  # noqa: F401 - fixtures
    ReferenceCalls,
    calls,
    files_of,
    fill,
    row_files,
    saved_model,
    small_files,
)
from .running import prepared_rows

pytestmark = pytest.mark.usefixtures("small_files")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_rows(tmp_path_factory.mktemp("rows"), 7)


# ---- the key ----


def folders(cache: Path) -> set[str]:
    return {path.parent.name for path in row_files(cache)}


def other_rows(rows: Dataset) -> Dataset:
    def change(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"chosen_ids": [*row["chosen_ids"][:-1], 5]} if index == 3 else {}

    return rows.map(change, with_indices=True)


def test_another_reference_tokenizer_or_other_rows_have_a_folder_of_their_own(tmp_path: Path, rows: Dataset) -> None:
    cache = tmp_path / "cache"
    fill(tmp_path, rows, cache)
    before = files_of(cache)
    assert len(folders(cache)) == 1

    def models(**changes: Any) -> dict[str, Any]:
        return {"model": tiny_model(), "ref_model": tiny_model(**{"head_scale": 3.0, **changes})}

    moved = models()
    with torch.no_grad():
        moved["ref_model"].transformer.h[0].mlp.c_fc.bias[0] += 1e-6
    for number, settings in enumerate(
        (
            {"models": moved},
            {"models": models(layer_norm_epsilon=1e-6)},  # the same weights
            {"rows": other_rows(rows)},
            {"mask_position": "token"},
            {"max_length": 12},
            {"objective": "tdpo1", "mask_learning_rate": None, "mask_dropout": None},
        )
    ):
        settings = {"rows": rows, **settings}
        fill(tmp_path, settings.pop("rows"), cache, **settings)
        assert len(folders(cache)) == 2 + number, settings
    fill(tmp_path, rows, cache, mask_sharing="independent", mask_gate="clamped", seed=5, beta=0.5)  # reads the same
    assert len(folders(cache)) == 7
    assert {name: files_of(cache)[name] for name in before} == before  # never written over


def test_another_tokenizer_has_another_key() -> None:
    one, other, changed = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer()
    changed.add_tokens(["new"])
    one(["the film", "a"], padding=True, truncation=True, max_length=8)  # leaves its wishes in the tokenizer
    assert hash_tokenizer(one) == hash_tokenizer(other) != hash_tokenizer(changed)
    changed = tiny_tokenizer()
    changed.chat_template = "{{ messages }}"
    assert hash_tokenizer(changed) != hash_tokenizer(other)


def test_hashes_of_weights_know_names_types_and_shapes() -> None:
    ones = torch.ones(2, 3)
    different = [{"a": ones}, {"b": ones}, {"a": ones.T}, {"a": ones.bfloat16()}, {"a": ones, "b": ones}]
    assert len({hash_tensors(named.items()) for named in different}) == len(different)
    assert hash_tensors([("a", ones), ("b", ones)]) == hash_tensors([("b", ones), ("a", ones)])


def test_weight_files_are_those_that_are_loaded(tmp_path: Path) -> None:
    name = saved_model(tmp_path / "model")
    assert weight_files(name, None) == [tmp_path / "model" / "model.safetensors"]
    tiny_model().save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    shards = weight_files(str(tmp_path / "shards"), None)
    assert shards is not None
    assert len(shards) == 1 + len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shards[1].unlink()
    assert weight_files(str(tmp_path / "shards"), None) is None
    assert weight_files("nobody/has-this-model", None) is None


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("max_length", [None, 4, 9, 14])
def test_the_estimate_counts_the_tokens_that_the_collator_leaves(
    rows: Dataset, mode: str, max_length: int | None
) -> None:
    rows = rows.add_column("extra", list(range(len(rows)))).select([5, 0, 2, 3])
    collator = PreferenceCollator(pad_token_id=0, max_length=max_length, truncation_mode=mode)
    batch = collator([rows[index] for index in range(len(rows))])
    counts = batch["completion_mask"][:, 1:].sum(1).view(2, -1).T
    assert read_rows(rows).response_tokens(max_length, mode).tolist() == counts.tolist()


# ---- size ----

HEAD = HeadForm(is_shared=False, is_capped=False, hidden_size=64, nbytes=1000, itemsize=2)
SHARED = HeadForm(is_shared=True, is_capped=False, hidden_size=64, nbytes=1000, itemsize=2)


def test_what_is_kept_follows_from_objective_mask_and_head() -> None:
    learned = LearnedMask(64, 5)
    cases: list[tuple[Masker | None, bool, HeadForm, dict[str, int]]] = [
        (None, False, HEAD, {"logps": 4}),
        (None, True, HEAD, {"logps": 4, "hidden": 128}),
        (None, True, SHARED, {"logps": 4, "hidden": 128, "log_normaliser": 4, "expected_weight": 256}),
        (learned, True, HEAD, {"logps": 4, "hidden": 128, "states": 640}),
        (LearnedMask(64, 5, layers="last"), True, HEAD, {"logps": 4, "hidden": 128, "states": 128}),
        (ActivationMask(), True, HEAD, {"logps": 4, "hidden": 128, "mask": 4}),
    ]
    for masker, need_kl, head, expected in cases:
        assert plan_cache(masker, need_kl, head).token_bytes() == expected
    capped = HeadForm(is_shared=True, is_capped=True, hidden_size=64, nbytes=1000, itemsize=2)
    plan = plan_cache(None, True, capped)
    assert plan.token_bytes() == {"logps": 4, "hidden": 128}
    assert not plan.needs_head  # the policy's own head is read
    assert plan_cache(None, True, HEAD).needs_head


def test_a_mask_that_reads_who_knows_what_is_refused() -> None:
    class Mine(Masker):
        kind = "mine"
        needs_hidden_states = True

    with pytest.raises(ValueError, match="precompute_ref=True cannot cache what the mask Mine reads"):
        plan_cache(Mine(), True, HEAD)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (CachePlan("hidden", HEAD, layers=24, mask_hidden_size=64), r"9\d% of it are the states of 24 block\(s\)"),
        (CachePlan("expectation", SHARED), r"6\d% of it are E_q\[W\]"),
        (CachePlan("hidden", HEAD), r"9\d% of it are the reference's last hidden states"),
    ],
)
def test_a_refusal_names_the_estimate_what_dominates_it_and_the_mends(plan: CachePlan, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        check_estimate({"train": (plan, 1 << 30), "eval": (plan, 1 << 20)}, 50)
    total = sum(plan.token_bytes().values()) * (1 + 1 / 1024)
    assert f"{total:.3g} GiB (train: 1,073,741,824 tokens, eval: 1,048,576 tokens)" in str(refusal.value)
    assert "raise precompute_ref_max_gib" in str(refusal.value)
    assert ("mask_layers='last'" in str(refusal.value)) == (plan.layers > 0)
    assert check_estimate({"train": (plan, 1 << 20)}, 50) < 5


def test_the_limit_refuses_before_anything_is_done(tmp_path: Path, calls: ReferenceCalls) -> None:  # noqa: F811
    model = saved_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"would store .* GiB .*above precompute_ref_max_gib=1e-07"):
        fill(tmp_path, preference_rows(4), tmp_path / "cache", models={"model": model}, precompute_ref_max_gib=1e-7)
    assert calls.count == 0
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path,
    rows: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    calls: ReferenceCalls,  # noqa: F811
) -> None:
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ValueError, match=r"precompute_ref_dir='.*cache': .* GiB are to be stored"):
        fill(tmp_path, rows, tmp_path / "cache")
    assert calls.count == 0


def test_files_hold_few_rows_and_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ROWS_OF_A_FILE", 3)
    monkeypatch.setattr(store, "BYTES_OF_A_FILE", 10)
    blocks = store.split_rows(np.array([4, 4, 4, 30, 1, 1, 1, 1]))
    assert [(block.first, block.last) for block in blocks] == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]


def test_adapters_of_the_reference_belong_to_the_key(tmp_path: Path, rows: Dataset) -> None:
    """A reference that is itself adapted: its adapter's weights and settings tell it from others."""

    def adapted(factor: float = 1.0, alpha: int = 8) -> Any:
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=alpha, task_type="CAUSAL_LM", init_lora_weights=False)
        reference = get_peft_model(tiny_model("gpt2"), config)
        with torch.no_grad():
            for name, value in reference.named_parameters():
                if "lora_" in name:
                    value *= factor
        return reference

    for reference in (adapted(), adapted(factor=5.0), adapted(alpha=16), adapted()):
        fill(tmp_path, rows, tmp_path / "cache", models={"model": tiny_model("gpt2"), "ref_model": reference})
    assert len(folders(tmp_path / "cache")) == 3
