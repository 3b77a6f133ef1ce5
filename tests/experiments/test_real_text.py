"""The run on real text from end to end, on texts of the sentiment world with a BPE tokenizer."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from sparsepo.cli.small_models import train_tokenizer
from sparsepo.experiments.grids import TARGETS
from sparsepo.experiments.real_text import main, settings
from sparsepo.experiments.real_text_runs import SELECTIONS, Corpus, RealTextTask
from sparsepo.experiments.store import Store
from sparsepo.playground.world import World
from sparsepo.training import SparsePOConfig
from sparsepo.training.settings import resolve_settings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, scored texts and both lists, in files as they come."""
    folder, world = tmp_path_factory.mktemp("real"), World()
    rows = []
    for number, prompt in enumerate(world.prompts(12, 0)):
        for review in world.reviews(3, number):
            rows.append({"prompt": prompt, "text": review.response.strip(), "reward": world.reward(review.response)})
    (folder / "scored.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = train_tokenizer([row["text"] for row in rows], 400)
    tokenizer.save_pretrained(folder / "lm")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "lm")
    with zipfile.ZipFile(folder / "opinion.zip", "w") as archive:
        archive.writestr("positive-words.txt", "\n".join(sorted(world.positive_words)))
        archive.writestr("negative-words.txt", "\n".join(sorted(world.negative_words)))
    paths = {name: str(folder / file) for name, file in (("model", "lm"), ("scored", "scored.jsonl"))}
    return paths | {"opinion": str(folder / "opinion.zip")}


def test_both_yardsticks_end_to_end(inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [part for name, value in inputs.items() for part in (f"--{name}", value)]
    arguments += ["--output", str(tmp_path), "--seeds", "0", "--steps", "4", "--only", "DPO", "normalised 0.6"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for part in (
        "Against the word lists",
        "Against known edits",
        "untrained heads",
        "gradient × input",
        "DPO's absolute",
    ):
        assert part in text
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert len(found) == 6  # DPO, and the mask at both positions, on both yardsticks
    for result in found:
        assert set(result["ranking"]["entropy"]) == set(SELECTIONS)
        assert result["ranking"]["uniform"]["all"]["auc"] == 0.5
        assert 0 < result["positive_share"] < 0.5
        assert ("reward_mask" in result["ranking"]) == (result["task"]["label"] != "DPO")
    assert main([*arguments, "--report_only"]) == 0


def test_every_setting_is_accepted() -> None:
    own = settings()
    assert {value["mask_target_sparsity"] for _, value in own if "mask_target_sparsity" in value} == set(TARGETS)
    for _, value in own:
        resolve_settings(SparsePOConfig(output_dir="x", bf16=False, **value))


def test_prompts_of_judging_are_not_trained_on(inputs: dict[str, str]) -> None:
    corpus = Corpus(inputs["model"], inputs["scored"], None, inputs["opinion"])
    train, held_out = corpus.pairs()
    assert train
    assert held_out
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert len(Corpus(inputs["model"], inputs["scored"], None, inputs["opinion"], limit=3).pairs()[0]) == 3


def test_mistakes_are_named(inputs: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--model", inputs["model"], "--scored", inputs["scored"], "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="at least one word list"):
        main(arguments)
    with pytest.raises(ValueError, match="yardstick='eyes'"):
        RealTextTask("a", Corpus("m", "s", None, None), yardstick="eyes")
    task = RealTextTask("a", Corpus("m", "s", None, None))
    assert task.key != RealTextTask("a", Corpus("m", "s", None, None), seed=1).key
    assert Store(tmp_path).result(task) is None
