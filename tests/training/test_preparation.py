"""Rows → token ids, identities and weights, in every dataset form that users bring."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, IterableDataset

from sparsepo import SparsePOConfig, SparsePOTrainer
from tests.support import preference_rows, tiny_model, tiny_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ ' ' + eos_token }}"
    "{% endif %}{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def build(tmp_path, rows, eval_rows=None, tokenizer=None, **settings):
    defaults = {
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "objective": "dpo",
        "remove_unused_columns": True,
    }
    return SparsePOTrainer(
        tiny_model(),
        args=SparsePOConfig(str(tmp_path), **{**defaults, **settings}),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer or tiny_tokenizer(),
    )


def first_batch(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(2)])


def test_row_ids_reach_the_batch(tmp_path):
    trainer = build(tmp_path, preference_rows(6))
    seen = torch.cat([batch["row_id"] for batch in trainer.get_train_dataloader()])
    assert sorted(seen.tolist()) == list(range(6))


def test_preparation_is_idempotent(tmp_path):
    trainer = build(tmp_path, preference_rows(4))
    again = trainer._prepare_dataset(trainer.train_dataset, trainer.processing_class, trainer.args, "train")
    assert again is trainer.train_dataset


def test_hh_transcripts_are_split_at_the_last_turn(tmp_path):
    start = "\n\nHuman: the film was\n\nAssistant: good\n\nHuman: a story is\n\nAssistant:"
    rows = Dataset.from_list([{"chosen": f"{start} warm and bright", "rejected": f"{start} warm and dull"}] * 2)
    trainer = build(tmp_path, rows)
    row = trainer.train_dataset[0]
    tokenizer = tiny_tokenizer()
    # TRL's common-prefix rule would have moved "warm and" into the prompt
    assert tokenizer.decode(row["chosen_ids"]).split() == ["warm", "and", "bright", "<eos>"]
    assert tokenizer.decode(row["rejected_ids"]).split() == ["warm", "and", "dull", "<eos>"]


def test_transcripts_with_other_prompts_are_named(tmp_path):
    rows = Dataset.from_list(
        [{"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: the\n\nAssistant: bad"}]
    )
    with pytest.raises(
        ValueError, match="Row 0: 'chosen' and 'rejected' are dialogue transcripts whose prompts differ"
    ):
        build(tmp_path, rows)


def test_implicit_prompts_and_conversations(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    user = {"role": "user", "content": "the film was"}
    rows = Dataset.from_list(
        [
            {
                "chosen": [user, {"role": "assistant", "content": "good"}],
                "rejected": [user, {"role": "assistant", "content": "bad and slow"}],
            }
        ]
        * 2
    )
    trainer = build(tmp_path, rows, tokenizer=tokenizer)
    row = trainer.train_dataset[0]
    assert tokenizer.decode(row["chosen_ids"]).split() == ["good", "<eos>"]
    assert tokenizer.decode(row["rejected_ids"]).split() == ["bad", "and", "slow", "<eos>"]


def test_streaming_with_evaluation_during_training(tmp_path):
    rows = preference_rows(8)
    stream = IterableDataset.from_generator(lambda: iter(rows.to_list()))
    trainer = build(
        tmp_path,
        stream,
        {"one": preference_rows(3, 1), "two": preference_rows(5, 2)},
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        objective="sparsepo",
    )
    trainer.train()
    names = {key for record in trainer.state.log_history for key in record}
    assert {"eval_one_loss", "eval_two_loss", "eval_one_mask/reward/mean", "eval_two_rewards/margins"} <= names


def test_prompts_are_cut_at_the_left(tmp_path):
    rows = Dataset.from_list([{"prompt": "the film was good and the actor", "chosen": " bad", "rejected": " dull"}] * 2)
    trainer = build(tmp_path, rows, max_prompt_length=3)
    assert tiny_tokenizer().decode(trainer.train_dataset[0]["prompt_ids"]).split() == ["and", "the", "actor"]


def weighted(given_chosen, given_rejected):
    row = {"prompt": "the film was", "chosen": " good and slow", "rejected": " bad", "chosen_weights": given_chosen}
    return Dataset.from_list([{**row, "rejected_weights": given_rejected}] * 2)


def test_weights_per_token(tmp_path):
    trainer = build(tmp_path, weighted([0.5, 0.0, 2.0], [1.0]), objective="sparsepo", mask="data")
    batch = first_batch(trainer)
    assert batch["token_weights"].shape == batch["input_ids"].shape
    scores = trainer.score(batch)
    assert scores.chosen.reward_mask[0][scores.chosen.response_mask[0]].tolist() == [0.5, 0.0, 2.0, 0.0]
    assert scores.rejected.kl_mask[1][scores.rejected.response_mask[1]].tolist() == [1.0, 0.0]


def test_weights_by_character_spans(tmp_path):
    rows = weighted([[1.0, 5.0, 0.25], [10.0, 14.0, 3.0]], [[2.0, 3.0, 1.5]])  # " good" and "slow"; inside "bad"
    trainer = build(tmp_path, rows, objective="sparsepo", mask="data", mask_on="reward")
    scores = trainer.score(first_batch(trainer))
    assert scores.chosen.reward_mask[0][scores.chosen.response_mask[0]].tolist() == [0.25, 0.0, 3.0, 0.0]
    assert scores.rejected.reward_mask[0][scores.rejected.response_mask[0]].tolist() == [1.5, 0.0]
    assert scores.chosen.kl_mask[0][scores.chosen.response_mask[0]].tolist() == [1.0] * 4


def test_weights_are_cut_like_tokens(tmp_path):
    trainer = build(tmp_path, weighted([0.5, 0.0, 2.0], [1.0]), objective="sparsepo", mask="data", max_length=5)
    batch = first_batch(trainer)
    assert batch["input_ids"].shape[1] == 5
    assert batch["token_weights"][0].tolist() == [0.0, 0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([0.5, 1.0], "row 0, column 'chosen_weights': 2 weights for a response of 4 tokens"),
        ([0.5, -1.0, 0.0], "row 0, column 'chosen_weights': weight -1.0 must be a finite number"),
        ([0.5, float("nan"), 0.0], "weight nan must be a finite number"),
        ([[0.0, 99.0, 1.0]], r"span \[0.0, 99.0, 1.0\] must be \[start, end, weight\] with 0 <= start < end <="),
        ([[3.0, 3.0, 1.0]], r"span \[3.0, 3.0, 1.0\] must be"),
        ([[0.0, 2.0]], r"span \[0.0, 2.0\] must be"),
        ([[0.0, 2.0, -0.5]], "weight -0.5 must be a finite number"),
    ],
)
def test_bad_weights_are_named(tmp_path, chosen, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, weighted(chosen, [1.0]), objective="sparsepo", mask="data")


def test_fully_truncated_rows_are_dropped_as_trl_does(tmp_path):
    rows = Dataset.from_list(
        [
            {"prompt": "the film was good", "chosen": " good", "rejected": " bad"},
            {"prompt": "the", "chosen": " good", "rejected": " bad"},
        ]
    )
    trainer = build(tmp_path, rows, max_length=4)
    assert trainer.train_dataset["row_id"] == [1] or list(trainer.train_dataset["row_id"]) == [1]


def test_long_prompts_are_cut_before_rows_are_dropped(tmp_path):
    rows = Dataset.from_list([{"prompt": "the film was good " * 10, "chosen": " good", "rejected": " bad"}] * 2)
    trainer = build(tmp_path, rows, max_length=12, max_prompt_length=4)
    assert len(trainer.train_dataset) == 2
    assert len(trainer.train_dataset[0]["prompt_ids"]) == 4


def test_prepared_rows_are_cut_too(tmp_path):
    ready = build(tmp_path, preference_rows(4)).train_dataset
    trainer = build(tmp_path, ready, max_prompt_length=2)
    assert max(len(ids) for ids in trainer.train_dataset["prompt_ids"]) == 2


def test_a_text_column_named_row_id_is_refused(tmp_path):
    rows = preference_rows(2).add_column("row_id", ["a", "b"])
    with pytest.raises(ValueError, match="has a column 'row_id' that holds 'a'"):
        build(tmp_path, rows)


def test_streams_are_not_numbered(tmp_path):
    """Loader workers would each start at 0: tokens tell the rows apart instead."""
    rows = preference_rows(4)
    trainer = build(tmp_path, IterableDataset.from_generator(lambda: iter(rows.to_list())), max_steps=1)
    assert "row_id" not in next(iter(trainer.get_train_dataloader()))


def test_spans_in_chats_are_looked_for_in_the_answer(tmp_path):
    """The answer's characters also stand in the template's closing mark."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' . and ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    row = {
        "prompt": [{"role": "user", "content": "the film was"}],
        "chosen": [{"role": "assistant", "content": "and"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "chosen_weights": [[0.0, 3.0, 2.0]],
        "rejected_weights": [[0.0, 3.0, 1.0]],
    }
    trainer = build(tmp_path, Dataset.from_list([row] * 2), tokenizer=tokenizer, objective="sparsepo", mask="data")
    prepared = trainer.train_dataset[0]
    assert tokenizer.decode(prepared["chosen_ids"]).split() == ["and", ".", "and"]
    assert list(prepared["chosen_token_weights"]) == [2.0, 0.0, 0.0]
