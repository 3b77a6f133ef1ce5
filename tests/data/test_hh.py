from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsepo.data.hh import (
    hh_row_to_conversation,
    hh_to_messages,
    is_hh_transcript,
    split_hh_row,
    split_hh_text,
    why_not_split,
)
from tests.data.data_support import read_lines, shared_file

ROW = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Joke?\n\nAssistant: I know one.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Joke?\n\nAssistant: I know none.",
}


def test_splits_at_the_last_answer_and_not_at_the_common_prefix() -> None:
    assert split_hh_row(ROW) == {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Joke?\n\nAssistant:",
        "chosen": " I know one.",
        "rejected": " I know none.",
    }


def test_recovers_roles() -> None:
    assert hh_row_to_conversation(ROW) == {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Joke?"},
        ],
        "chosen": [{"role": "assistant", "content": "I know one."}],
        "rejected": [{"role": "assistant", "content": "I know none."}],
    }


def test_repeated_roles_are_joined_and_a_head_is_the_system_message() -> None:
    messages = hh_to_messages("Be kind.\n\nHuman: a\n\nHuman: b\n\nAssistant: c")
    assert messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
    ]


def test_marker_words_inside_a_line_are_text() -> None:
    assert hh_to_messages("\n\nHuman: the Human: said\n\nAssistant: yes")[0]["content"] == "the Human: said"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "rejected": ROW["rejected"].replace("Hi", "Ho")}, "differ from character 10 on"),
        ({**ROW, "chosen": "\n\nHuman: Hi"}, "'chosen' does not end with an 'Assistant:' turn"),
        ({**ROW, "rejected": ROW["rejected"] + "\n\nHuman: more"}, "'rejected' does not end with an 'Assistant:' turn"),
        ({**ROW, "chosen": None}, "'chosen' is NoneType, not a text"),
    ],
)
def test_rows_that_cannot_be_split_say_why(row: dict, reason: str) -> None:
    assert split_hh_row(row) is None
    assert hh_row_to_conversation(row) is None
    assert reason in str(why_not_split(row))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW, True),
        ({key: value.strip() for key, value in ROW.items()}, True),
        ({"prompt": "x", **ROW}, False),
        ({"prompt": "", **ROW}, True),
        ({"chosen": "Yes. Assistant: no", "rejected": "No."}, False),
        ({"chosen": [{"role": "user", "content": "x"}], "rejected": []}, False),
        ({"text": "x"}, False),
    ],
)
def test_recognises_transcripts(row: dict, expected: bool) -> None:
    assert is_hh_transcript(row) is expected


turn = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda t: "Human:" not in t and "Assistant:" not in t)


@given(st.lists(st.tuples(turn, turn), min_size=1, max_size=4), turn, turn)
def test_split_keeps_every_character(turns: list[tuple[str, str]], chosen: str, rejected: str) -> None:
    head = "".join(f"\n\nHuman:{h}\n\nAssistant:{a}" for h, a in turns[:-1]) + f"\n\nHuman:{turns[-1][0]}\n\nAssistant:"
    row = {"chosen": head + chosen, "rejected": head + rejected}
    assert is_hh_transcript(row)
    assert split_hh_row(row) == {"prompt": head, "chosen": chosen, "rejected": rejected}
    assert split_hh_text(row["chosen"]) == (head, chosen)


@given(st.lists(turn.map(str.strip).filter(bool), min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_messages_give_the_turns_back(turns: list[str]) -> None:
    text = "".join(f"\n\n{'Human' if i % 2 == 0 else 'Assistant'}: {turn}" for i, turn in enumerate(turns))
    messages = hh_to_messages(text)
    assert [message["content"] for message in messages] == turns
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(turns) // 2)


def test_every_real_row_is_recovered() -> None:
    rows = read_lines(shared_file("hh_harmless.jsonl.gz"))
    assert len(rows) == 1800
    assert all(is_hh_transcript(row) for row in rows)
    failed = [index for index, row in enumerate(rows) if split_hh_row(row) is None]
    assert failed == [1254, 1688]  # stray spaces turned a turn's marker into text on one side
    for row in rows:
        parts = split_hh_row(row)
        if parts is None:
            assert "prompts of 'chosen' and 'rejected' differ" in str(why_not_split(row))
            continue
        assert parts["prompt"].endswith("\n\nAssistant:")
        assert [parts["prompt"] + parts[side] for side in ("chosen", "rejected")] == [row["chosen"], row["rejected"]]
        assert all(not parts[side] or parts[side].startswith(" ") for side in ("chosen", "rejected"))
        conversation = hh_row_to_conversation(row)
        assert conversation is not None
        assert conversation["prompt"][-1]["role"] == "user"


def test_needs_no_datasets() -> None:
    code = "import sys; from sparsepo.data.hh import split_hh_row; assert not {'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
