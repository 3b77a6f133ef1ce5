"""Points of a frontier: their numbers are the model's, they are kept whole, and what is read off them is right."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsepo.evaluation import Completion, sample_completions
from sparsepo.evaluation.frontier_points import Point, PointSettings, PointStore, fingerprint, measure_point
from sparsepo.evaluation.frontier_summary import MeasuredRun, SummarySettings, summarise
from sparsepo.evaluation.kl import divergences
from sparsepo.evaluation.rewards import get_reward
from sparsepo.masks import ActivationMask, DenseMask, LearnedMask, RandomMask
from sparsepo.masks.base import MaskInputs

PROMPTS = ["the film was", "i watched the", "a plot with"]
SETTINGS = PointSettings(samples=2, max_new_tokens=5, seed=3)


def measured(policy: Any, reference: Any, tokenizer: Any, **changes: Any) -> Point:
    return measure_point(policy, reference, tokenizer, PROMPTS, get_reward("playground"), SETTINGS, **changes)


# ---- divergences ----


def by_hand(policy: Any, reference: Any, sample: Completion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL(π ‖ ref), KL(ref ‖ π) and log-ratio of each token of a completion."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
    with torch.no_grad():
        p, q = (model(ids).logits[0].double().log_softmax(-1) for model in (policy, reference))
    places = slice(len(sample.prompt_ids) - 1, ids.shape[1] - 1)
    p, q = p[places], q[places]
    taken = torch.tensor(sample.token_ids)[:, None]
    ratio = (p - q).gather(-1, taken)[:, 0]
    return (p.exp() * (p - q)).sum(-1).numpy(), (q.exp() * (q - p)).sum(-1).numpy(), ratio.numpy()


def test_all_divergences_are_the_direct_sums(policy: Any, reference: Any, tokenizer: Any) -> None:
    groups = sample_completions(policy, tokenizer, PROMPTS, max_new_tokens=6, samples_per_prompt=2, seed=0)
    samples = [one for group in groups for one in group]
    direct = [by_hand(policy, reference, sample) for sample in samples]
    for batch_size in (1, 4):
        found = divergences(policy, reference, samples, masker=DenseMask(), batch_size=batch_size)
        for name, place in (("kl", 0), ("forward_kl", 1), ("log_ratio", 2), ("masked_kl", 0), ("masked_forward_kl", 1)):
            expected = [own[place].sum() for own in direct]
            assert getattr(found, name).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("kind", ["learned", "token", "activation"])
def test_masked_divergence_weights_each_token(policy: Any, reference: Any, tokenizer: Any, kind: str) -> None:
    """Against masks formed row by row from a forward of the reference of its own."""
    if kind == "activation":
        mask: Any = ActivationMask(("mlp", "attn"))
    else:
        position = "token" if kind == "token" else "predicting"
        mask = LearnedMask.for_model(reference, init="published", position=position, seed=4)
    groups = sample_completions(policy, tokenizer, PROMPTS, max_new_tokens=6, seed=0)
    samples = [group[0] for group in groups]
    found = divergences(policy, reference, samples, masker=mask)
    assert found.masked_kl is not None
    for place, sample in enumerate(samples):
        ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
        response = torch.zeros(1, ids.shape[1] - 1, dtype=torch.bool)
        response[:, len(sample.prompt_ids) - 1 :] = True
        with torch.no_grad(), mask.tap(reference) as activations:
            states = reference(ids, output_hidden_states=True).hidden_states[1:]
        own = mask.token_masks(MaskInputs(response, hidden_states=list(states), activations=activations)).kl[response]
        kl, _, _ = by_hand(policy, reference, sample)
        assert float(found.masked_kl[place]) == pytest.approx(
            float((own.detach().double().numpy() * kl).sum()), rel=1e-4
        )
    assert (found.masked_kl - found.kl).abs().max() > 1e-3


def test_masks_of_data_rows_have_no_meaning_for_samples(policy: Any, reference: Any) -> None:
    sample = Completion((4,), (5, 6), "", True)
    with pytest.raises(ValueError, match="'random' mask belongs to rows of data"):
        divergences(policy, reference, [sample], masker=RandomMask())


def test_entries_without_probability_do_not_count(reference: Any) -> None:
    """Models that mask padding entries of their vocabulary give −∞ there."""
    import copy

    def without_last(model: Any) -> Any:
        own = copy.deepcopy(model)
        own.lm_head = torch.nn.Linear(16, model.config.vocab_size, bias=True)
        with torch.no_grad():
            own.lm_head.weight.copy_(model.lm_head.weight)
            own.lm_head.bias.zero_()
            own.lm_head.bias[-3:] = -torch.inf
        return own

    one, other = without_last(reference), without_last(reference)
    with torch.no_grad():
        other.lm_head.bias[5] += 1
    found = divergences(one, other, [Completion((4,), (5, 6), "", True)])
    assert torch.isfinite(found.kl).all()
    assert torch.isfinite(found.forward_kl).all()
    assert float(found.kl) > 0


# ---- points ----


def test_a_point_is_the_samples_rewards_and_kls(policy: Any, reference: Any, tokenizer: Any) -> None:
    pairs = {"chosen": [Completion((4,), (5, 6), "", True)], "rejected": [Completion((4,), (7,), "", True)]}
    point = measured(policy, reference, tokenizer, masker=DenseMask(), pairs=pairs)
    groups = sample_completions(policy, tokenizer, PROMPTS, max_new_tokens=5, samples_per_prompt=2, seed=3)
    assert point.texts == [[one.text for one in group] for group in groups]
    assert point.rewards.shape == (3, 2)
    assert point.rewards[1, 0] == get_reward("playground")([""], [groups[1][0].text])[0]
    own = divergences(policy, reference, [one for group in groups for one in group])
    assert point.kls["exact"].ravel().tolist() == own.kl.tolist()
    assert point.kls["monte_carlo"].ravel().tolist() == own.log_ratio.tolist()
    assert np.allclose(point.kls["masked"], point.kls["exact"])
    assert point.data["rejected"]["forward_kl"] == pytest.approx(
        divergences(policy, reference, pairs["rejected"]).forward_kl.tolist()
    )
    start = measured(reference, reference, tokenizer)
    assert not start.kls["exact"].any()
    assert "masked" not in start.kls


def test_points_are_kept_whole_and_measured_once(policy: Any, reference: Any, tokenizer: Any, tmp_path: Path) -> None:
    store = PointStore(tmp_path / "points", PROMPTS, SETTINGS)
    asked: list[PointSettings] = []

    def measure(settings: PointSettings) -> Point:
        asked.append(settings)
        return measured(policy, reference, tokenizer, masker=DenseMask())

    first, key, was_there = store.get("DPO β 0.1", {"model": "m"}, measure)
    again, same, kept = store.get("DPO β 0.1", {"model": "m"}, measure)
    assert (was_there, kept, key) == (False, True, same)
    assert len(asked) == 1
    for name in ("rewards", "tokens", "finished"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert {name: value.tolist() for name, value in first.kls.items()} == {
        name: value.tolist() for name, value in measure(SETTINGS).kls.items()
    }
    assert again.texts == first.texts
    rows = [json.loads(line) for line in (tmp_path / "points" / f"{key}.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {row["seed"] for row in rows} == {3}
    assert set(rows[0]["kl"]) == {"exact", "monte_carlo", "masked"}
    # whatever its numbers depend on makes another point; so does an interruption before the last file
    others = [
        PointStore(tmp_path, PROMPTS[:2], SETTINGS),
        PointStore(tmp_path, PROMPTS, PointSettings(samples=2, seed=4)),
    ]
    keys = {
        store.key("x", {"model": "m"}),
        store.key("x", {"model": "n"}),
        *(o.key("x", {"model": "m"}) for o in others),
    }
    assert len(keys) == 4
    (tmp_path / "points" / f"{key}.json").unlink()
    store.get("DPO β 0.1", {"model": "m"}, measure)
    assert len(asked) == 3


def test_fingerprints_follow_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("a")
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card says nothing of the numbers")
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_text("bb")
    assert fingerprint(tmp_path) != before
    assert fingerprint("owner/name") == ["owner/name"]


# ---- what is read off ----


def made(rng: np.random.Generator, reward: float, kl: float, prompts: int = 60, samples: int = 1) -> Point:
    shape = (prompts, samples)
    kls = {"exact": np.full(shape, kl), "monte_carlo": rng.normal(kl, 0.5, shape)}
    return Point(rng.normal(reward, 0.1, shape), kls, np.full(shape, 9.0), np.ones(shape, dtype=bool))


def runs_of(rng: np.random.Generator, **levels: float) -> list[MeasuredRun]:
    """Methods with two β, two seeds and two checkpoints; the level is the reward at KL 0.4."""
    return [
        MeasuredRun(
            method,
            beta,
            seed,
            f"{method}-{beta}-{seed}",
            "sft",
            (10, 20),
            [made(rng, (0.5 + level) / 2, 0.1), made(rng, level - (beta > 0.2) * 0.05, 0.4)],
            ("a", "b"),
        )
        for method, level in levels.items()
        for beta in (0.1, 0.5)
        for seed in (0, 1)
    ]


def test_a_summary_says_what_was_put_in() -> None:
    rng = np.random.default_rng(0)
    references = {"sft": made(rng, 0.5, 0.0)}
    found = summarise(runs_of(rng, DPO=0.6, SparsePO=0.7), references, SummarySettings(draws=100, budgets=(0.2, 0.4)))
    assert json.dumps(found, allow_nan=False)
    assert [(p["method"], p["beta"], p["step"], p["seeds"]) for p in found["points"]][:2] == [
        ("DPO", 0.1, 10, [0, 1]),
        ("DPO", 0.1, 20, [0, 1]),
    ]
    assert len(found["runs"]) == 16
    point = found["points"][1]
    assert point["reward"]["low"] < 0.6 < point["reward"]["high"]
    assert point["exact"] == {"value": pytest.approx(0.4), "low": pytest.approx(0.4), "high": pytest.approx(0.4)}
    assert found["max_kl"] == pytest.approx(0.4)
    front = [found["points"][place] for place in found["methods"]["SparsePO"]["front"]]
    assert [p["exact"]["value"] for p in front] == pytest.approx([0.1, 0.4])
    assert front[-1]["beta"] == 0.1
    comparison = found["comparison"]
    assert comparison["baseline"] == "DPO"
    within = comparison["within"][1]
    assert within["budget"] == 0.4
    assert within["methods"]["SparsePO"]["reward"]["value"] == pytest.approx(0.7, abs=0.03)
    assert within["methods"]["SparsePO"]["difference"]["value"] == pytest.approx(0.1, abs=0.03)
    assert within["methods"]["SparsePO"]["p_value"] < 0.05
    assert comparison["area"]["SparsePO"]["difference"]["low"] > 0
    assert any("sampled 1 times a prompt" in note for note in found["notes"])


def test_the_optimum_and_the_share_of_its_gain() -> None:
    rng = np.random.default_rng(0)
    reference = made(rng, 0.5, 0.0, prompts=40, samples=64)
    runs = [MeasuredRun("DPO", 0.1, 0, "f", "sft", (5,), [made(rng, 0.55, 0.2, prompts=40)], ("a",))]
    found = summarise(runs, {"sft": reference}, SummarySettings(draws=50, budgets=(0.1,)))
    line = found["optimum"]
    assert line[0] == {"kl": 0.0, "reward": pytest.approx(reference.rewards.mean())}
    assert all(b["reward"] > a["reward"] for a, b in pairwise(line))
    share = found["comparison"]["within"][0]["methods"]["DPO"]["share"]["value"]
    # to first order the optimum gains sd √(2 KL) = 0.1 √0.2 at 0.1 nats; the run half-way in √KL to +0.05
    assert share == pytest.approx(0.05 / np.sqrt(2) / (0.1 * np.sqrt(0.2)), rel=0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seeds", "left out: 1"),
        ("runs", "different numbers of runs (DPO 4, SparsePO 3)"),
        ("none", "no seed is common"),
        ("still", "no method is away from its reference"),
        ("one", "One seed: intervals and tests are over prompts alone"),
        ("gap", "no checkpoint with so little KL as 0.01 nats (its least is 0.1)"),
    ],
)
def test_what_a_reader_must_know_is_noted(change: str, said: str) -> None:
    rng = np.random.default_rng(0)
    runs = runs_of(rng, DPO=0.6, SparsePO=0.7)
    settings = SummarySettings(draws=20, budgets=(0.01,) if change == "gap" else None)
    if change == "seeds":
        runs = [run for run in runs if run.method == "DPO" or run.seed == 0]
    elif change == "runs":
        runs = runs[:-1]
    elif change == "none":
        runs = [run for run in runs if (run.method == "DPO") == (run.seed == 0)]
    elif change == "one":
        runs = [run for run in runs if run.seed == 0]
    elif change == "still":
        runs = [
            MeasuredRun("DPO", 0.1, 0, "f", "sft", (0,), [made(rng, 0.5, 0.0)], ("a",)),
        ]
    found = summarise(runs, {"sft": made(rng, 0.5, 0.0)}, settings)
    assert any(said in note for note in found["notes"]), found["notes"]
    assert (found["comparison"] is None) == (change in ("none", "still"))
