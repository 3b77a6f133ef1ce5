from __future__ import annotations

import io
import json
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from rich.console import Console

from sparsepo.data import CheckError, CheckSettings, DataError, check_preferences, load_preference_data
from sparsepo.data.lengths import tokenize_rows
from tests.data.data_support import shared_file

PAIRS = [{"prompt": f"w{i} a", "chosen": f" w{i} b", "rejected": f" w{i} c"} for i in range(8)]


def message(role: str, content: Any) -> dict:
    return {"role": role, "content": content}


def chat(prompt: str, chosen: str, rejected: str) -> dict:
    answers = {"chosen": [message("assistant", chosen)], "rejected": [message("assistant", rejected)]}
    return {"prompt": [message("user", prompt)], **answers}


CHAT = [chat(f"w{i} a", f"w{i} b", f"w{i} c") for i in range(8)]


def found(row: dict, base: list[dict] = PAIRS, **options: Any) -> tuple[Any, dict]:
    """Check the base rows with one bad row at place 3; the finding of that row."""
    clean, report = check_preferences([*base[:3], row, *base[3:]], **options)
    assert report.rows == len(base) + 1
    (finding,) = [f for f in report.to_dict()["findings"] if any(e["row"] == 3 for e in f["examples"])]
    return clean, {**finding, **next(e for e in finding["examples"] if e["row"] == 3)}


@pytest.mark.parametrize(
    ("changes", "code", "field", "detail"),
    [
        ({"chosen": None}, "missing", "chosen", "no value"),
        ({"rejected": 5}, "not_text", "rejected", "rejected is a number (5), not text"),
        ({"prompt": ""}, "empty_prompt", "prompt", "empty"),
        ({"prompt": " \n"}, "empty_prompt", "prompt", "blank"),
        ({"chosen": ""}, "empty_completion", "chosen", "empty"),
        ({"rejected": "\t "}, "empty_completion", "rejected", "blank"),
        ({"rejected": " b"}, "identical", "chosen, rejected", "the same"),
        (PAIRS[1], "duplicate", "prompt, chosen, rejected", "the same as row 1"),
    ],
)
def test_bad_rows_are_dropped_and_reported(changes: dict, code: str, field: str, detail: str) -> None:
    row = {"prompt": "w9", "chosen": " b", "rejected": " c", **changes}
    clean, finding = found(row)
    assert (finding["code"], finding["field"], finding["detail"]) == (code, field, detail)
    assert (finding["action"], finding["rows"]) == ("drop", 1)
    assert clean["row_id"] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert clean.remove_columns("row_id").to_list() == PAIRS
    assert clean.features["row_id"].dtype == "int64"


@pytest.mark.parametrize(
    ("row", "code", "field", "detail"),
    [
        (chat("w9", "", "c"), "empty_completion", "chosen[0].content", "empty message"),
        (chat(" ", "b", "c"), "messages", "prompt[0].content", "empty message"),
        ({**CHAT[0], "prompt": [message("human", "x")]}, "messages", "prompt[0].role", "'human' is none of assistant"),
        ({**CHAT[0], "prompt": []}, "empty_prompt", "prompt", "no messages"),
        ({**CHAT[0], "chosen": []}, "empty_completion", "chosen", "no messages"),
        ({**CHAT[0], "chosen": [message("user", "x")]}, "messages", "chosen[0].role", "must begin with 'assistant'"),
        (
            {**CHAT[0], "chosen": [message("assistant", 3)]},
            "not_text",
            "chosen[0].content",
            "is a number (3), not text",
        ),
        (chat("w9", "b", "b"), "identical", "chosen, rejected", "the same"),
        (CHAT[2], "duplicate", "prompt, chosen, rejected", "the same as row 2"),
    ],
)
def test_bad_conversations(row: dict, code: str, field: str, detail: str) -> None:
    clean, finding = found(row, CHAT)
    assert (finding["code"], finding["field"], finding["action"]) == (code, field, "drop")
    assert detail in finding["detail"]
    assert clean.remove_columns("row_id").to_list() == CHAT


def test_chat_template_refusal_is_a_finding(tokenizer: Any) -> None:
    row = {**CHAT[0], "prompt": [message("user", "a"), message("user", "b")]}
    _, finding = found(row, CHAT, tokenizer=tokenizer)
    assert finding["code"] == "messages"
    assert "the chat template refuses the row: roles must alternate" in finding["detail"]


def test_conversations_need_a_template(tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(DataError, match="conversational and the tokenizer has no chat template"):
        check_preferences(CHAT, bare)


WEIGHTED = [{**row, "chosen_weights": [1.0, 0.5], "rejected_weights": [0.0, 2.0]} for row in PAIRS]
SPANS = [{**row, "chosen_weights": [[0, 2, 1.0]], "rejected_weights": [[1, 3, 0.5]]} for row in PAIRS]


@pytest.mark.parametrize(
    ("base", "weights", "detail"),
    [
        (WEIGHTED, [1.0, float("nan")], "entry 1: nan is not finite"),
        (WEIGHTED, [-1.0, 0.0], "entry 0: -1.0 is negative"),
        (WEIGHTED, "heavy", "chosen_weights is text ('heavy'), not a list of numbers"),
        (WEIGHTED, None, "missing, but rejected_weights is given"),
        (SPANS, [[0, 9, 1.0]], "span [0.0, 9.0, 1.0] ends beyond the response's 2 characters"),
        (SPANS, [[2, 1, 1.0]], "start must be before end"),
        (SPANS, [[-1, 1, 1.0]], "-1.0 is no character position"),
        (SPANS, [[0, 1, float("nan")]], "weight nan is not finite"),
        (SPANS, [[0, 1]], "has 2 numbers instead of start, end, weight"),
    ],
)
def test_malformed_weights(base: list[dict], weights: Any, detail: str) -> None:
    row = {"prompt": "w9", "chosen": " b", "rejected": " cc", "chosen_weights": weights, "rejected_weights": None}
    row["rejected_weights"] = base[0]["rejected_weights"]
    clean, finding = found(row, base)
    assert (finding["code"], finding["field"], finding["action"]) == ("weights", "chosen_weights", "drop")
    assert detail in finding["detail"]
    assert len(clean) == 8


def test_weights_are_counted_against_tokens(tokenizer: Any) -> None:
    _, report = check_preferences([{**WEIGHTED[0], "rejected_weights": [1.0]}, *WEIGHTED[1:]], tokenizer)
    (finding,) = report.to_dict()["findings"]
    assert finding["examples"] == [
        {"row": 0, "field": "rejected_weights", "detail": "1 weights for a response of 2 tokens"}
    ]


def eos(row: dict) -> dict:
    """Responses whose end the word-level test tokenizer can tell from the word before."""
    return {**row, "chosen": row["chosen"] + " ", "rejected": row["rejected"] + " "}


LONG = {"prompt": "a b c", "chosen": " d e f g ", "rejected": " h i "}


def test_prompt_that_fills_max_length(tokenizer: Any) -> None:
    base = [eos(row) for row in PAIRS]
    clean, finding = found({**LONG, "prompt": "a b c d e f"}, base, tokenizer=tokenizer, max_length=6)
    assert (finding["code"], finding["field"], finding["action"]) == ("prompt_fills", "prompt", "drop")
    assert finding["detail"] == "6 tokens, max_length is 6: no room for a response"
    assert len(clean) == 8


def test_truncation_is_kept_and_measured(tokenizer: Any) -> None:
    base = [eos(row) for row in PAIRS]
    clean, finding = found(LONG, base, tokenizer=tokenizer, max_length=5)
    assert (finding["code"], finding["action"]) == ("truncated", "keep")
    assert (finding["field"], finding["detail"]) == ("chosen", "3 of 5 tokens lost (60%)")
    assert len(clean) == 9
    _, report = check_preferences([LONG], tokenizer, max_length=5)
    tokens = report.to_dict()["tokens"]
    assert (tokens["response_tokens_lost"], tokens["share_lost"]) == (4, 0.5)
    assert (tokens["prompt_longest"], tokens["response_longest"], tokens["response_mean"]) == (3, 5, 4.0)


@pytest.mark.parametrize(("max_lost", "kept"), [(0.0, 8), (0.5, 8), (0.6, 9), (None, 9)])
def test_threshold_of_lost_tokens(tokenizer: Any, max_lost: float | None, kept: int) -> None:
    base = [eos(row) for row in PAIRS]
    settings = CheckSettings(max_lost=max_lost)
    clean, report = check_preferences([*base, LONG], tokenizer, max_length=5, settings=settings)
    assert len(clean) == kept
    assert ("lost" in report.findings) == (kept == 8)


def test_responses_that_differ_beyond_the_cut(tokenizer: Any) -> None:
    row = {"prompt": "a b", "chosen": " c d e ", "rejected": " c d f "}
    settings = CheckSettings(max_dropped=1.0)
    clean, report = check_preferences([row, eos(PAIRS[0])], tokenizer, max_length=4, settings=settings)
    assert clean["row_id"] == [1]
    example = report.findings["identical_cut"].examples[0]
    assert example == {
        "row": 0,
        "field": "chosen, rejected",
        "detail": "they differ only beyond the 2 tokens that stay",
    }


def test_keep_end_loses_nothing_of_the_response(tokenizer: Any) -> None:
    settings = CheckSettings(truncation_mode="keep_end")
    _, report = check_preferences([LONG], tokenizer, max_length=5, settings=settings)
    assert report.findings == {}


def test_max_prompt_length(tokenizer: Any) -> None:
    clean, report = check_preferences([LONG], tokenizer, max_length=7, max_prompt_length=2)
    assert list(report.findings) == ["prompt_cut"]
    assert report.findings["prompt_cut"].examples[0]["detail"] == "3 tokens, the last 2 stay"
    assert len(clean) == 1
    with pytest.raises(DataError, match="max_prompt_length=8 leaves no room for responses in max_length=8"):
        check_preferences([LONG], tokenizer, max_length=8, max_prompt_length=8)


def test_conversational_lengths(tokenizer: Any) -> None:
    # <user> w0 a </s> <assistant> | w0 b </s>
    _, report = check_preferences(CHAT, tokenizer, max_length=7)
    assert report.findings["truncated"].count == 8
    assert report.to_dict()["tokens"]["prompt_longest"] == 5
    assert report.findings["truncated"].examples[0]["detail"] == "1 of 3 tokens lost (33%)"


def test_lengths_without_a_tokenizer_are_said_to_be_unchecked() -> None:
    _, report = check_preferences(PAIRS, max_length=5)
    assert report.notes == ["lengths were not checked: that needs a tokenizer"]
    assert report.to_dict()["tokens"] is None


def test_eval_overlap() -> None:
    held = [PAIRS[2], {**PAIRS[5], "chosen": " other"}]
    clean, report = check_preferences(PAIRS, eval_dataset={"a": held[:1], "b": Dataset.from_list(held[1:])})
    assert clean["row_id"] == [0, 1, 3, 4, 5, 6, 7]
    pair, prompt = report.findings["eval_pair"], report.findings["eval_prompt"]
    assert (pair.action, pair.count, pair.examples[0]["row"]) == ("drop", 1, 2)
    assert (prompt.action, prompt.count, prompt.examples[0]["row"]) == ("keep", 1, 5)
    settings = CheckSettings(actions={"eval_prompt": "drop", "eval_pair": "keep"})
    assert check_preferences(PAIRS, eval_dataset=held, settings=settings)[0]["row_id"] == [0, 1, 2, 3, 4, 6, 7]


def test_contradictions_are_noted() -> None:
    row = {"prompt": PAIRS[0]["prompt"], "chosen": PAIRS[0]["rejected"], "rejected": PAIRS[0]["chosen"]}
    clean, finding = found(row)
    assert (finding["code"], finding["action"], finding["detail"]) == (
        "contradiction",
        "keep",
        "row 0 prefers the other one",
    )
    assert len(clean) == 9


HH = [
    {"chosen": f"\n\nHuman: {i}\n\nAssistant: yes it", "rejected": f"\n\nHuman: {i}\n\nAssistant: yes no"}
    for i in range(4)
]


def test_transcripts_are_split() -> None:
    odd = {"chosen": HH[0]["chosen"], "rejected": HH[1]["rejected"]}
    clean, report = check_preferences([*HH, odd])
    assert clean[3] == {
        "prompt": "\n\nHuman: 3\n\nAssistant:",
        "chosen": " yes it",
        "rejected": " yes no",
        "row_id": 3,
    }
    example = report.findings["transcript"].examples[0]
    assert (example["row"], example["field"]) == (4, "chosen, rejected")
    assert "the prompts of 'chosen' and 'rejected' differ from character 9 on" in example["detail"]
    clean, _ = check_preferences(HH, settings=CheckSettings(hh_conversational=True))
    assert clean[0]["prompt"] == [message("user", "0")]
    assert clean[0]["chosen"] == [message("assistant", "yes it")]


def test_implicit_prompts_stay_implicit(tokenizer: Any) -> None:
    rows = [{"chosen": f"w{i} a b", "rejected": f"w{i} a c"} for i in range(3)] + [{"chosen": "b", "rejected": "c"}]
    clean, report = check_preferences(rows, tokenizer, max_length=10)
    assert clean.column_names == ["chosen", "rejected", "row_id"]
    assert report.findings["empty_prompt"].examples[0]["row"] == 3
    conversations = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in CHAT]
    assert check_preferences(conversations)[1].findings == {}


def test_given_row_ids_stay() -> None:
    rows = [{**row, "row_id": 10 + i} for i, row in enumerate(PAIRS)]
    rows[2]["chosen"] = ""
    clean, report = check_preferences(Dataset.from_list(rows))
    assert clean["row_id"] == [10, 11, 13, 14, 15, 16, 17]
    assert report.findings["empty_completion"].examples[0]["row"] == 2
    with pytest.raises(DataError, match="row 1, row_id: 5 is used twice"):
        check_preferences([{**row, "row_id": 5} for row in PAIRS])
    with pytest.raises(DataError, match="row 0, row_id: 'x' is no integer"):
        check_preferences([{**row, "row_id": "x"} for row in PAIRS])


def test_strict_names_row_and_field() -> None:
    rows = [*PAIRS[:2], {**PAIRS[0], "chosen": " "}, {**PAIRS[0], "prompt": ""}]
    with pytest.raises(CheckError, match=r"row 2, chosen: empty or blank completion \(blank\); 2 of 4 rows") as caught:
        check_preferences(rows, settings=CheckSettings(strict=True))
    assert caught.value.report.dropped == 2
    clean, _ = check_preferences(PAIRS, settings=CheckSettings(strict=True))
    assert len(clean) == 8


def test_too_many_dropped_rows_are_an_error() -> None:
    rows = [*PAIRS[:3], {**PAIRS[0], "chosen": " "}]
    with pytest.raises(CheckError, match=r"1 of 4 rows dropped, more than max_dropped=0\.2 allows; the first: row 3"):
        check_preferences(rows, settings=CheckSettings(max_dropped=0.2))
    assert len(check_preferences(rows, settings=CheckSettings(max_dropped=0.25))[0]) == 3
    with pytest.raises(CheckError, match="no row is left of 1; the first: row 0, chosen: empty"):
        check_preferences(rows[3:], settings=CheckSettings(max_dropped=1.0))


def test_actions() -> None:
    rows = [*PAIRS, PAIRS[0]]
    assert len(check_preferences(rows, settings=CheckSettings(actions={"duplicate": "keep"}))[0]) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_dropped": 1.5}, r"max_dropped=1\.5 must be a share"),
        ({"max_lost": -0.1}, r"max_lost=-0\.1 must be a share"),
        ({"truncation_mode": "middle"}, "truncation_mode='middle' must be"),
        ({"examples": 0}, "examples=0 must be at least 1"),
        ({"actions": {"dupes": "drop"}}, "There is no rule 'dupes'; rules are missing"),
        ({"actions": {"missing": "keep"}}, "'missing' cannot be kept: training cannot read them"),
        ({"actions": {"duplicate": "mend"}}, "must be 'drop' or 'keep'"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CheckSettings(**settings)


def test_rows_that_are_no_pairs() -> None:
    with pytest.raises(DataError, match="scored completions, plain text cannot be trained on"):
        check_preferences([{"prompt": "a", "text": "b", "reward": 1}])
    with pytest.raises(DataError, match="data holds no rows"):
        check_preferences([])


def stream(rows: list[dict]) -> IterableDataset:
    return Dataset.from_list(rows).to_iterable_dataset()


def test_streams_are_checked_as_they_are_read(tokenizer: Any) -> None:
    rows = [PAIRS[0], {**PAIRS[1], "chosen": " "}, PAIRS[0], PAIRS[2]]
    clean, report = check_preferences(stream(rows), tokenizer, max_length=20)
    assert isinstance(clean, IterableDataset)
    assert report.rows == 0
    first = list(clean)
    assert first == [{**PAIRS[0], "row_id": 0}, {**PAIRS[2], "row_id": 3}]
    assert list(clean) == first  # a second epoch: nothing is a duplicate of itself
    assert (report.rows, report.kept, report.tokens.rows) == (4, 2, 2)
    assert {code: finding.count for code, finding in report.findings.items()} == {"empty_completion": 1, "duplicate": 1}
    assert "streamed: rows are counted as they are read" in report.notes


def test_streamed_transcripts_and_strict(tmp_path: Any) -> None:
    odd = {"chosen": HH[0]["chosen"], "rejected": HH[1]["rejected"]}
    clean, report = check_preferences(stream([*HH, odd]))
    rows = list(clean)
    assert [row["row_id"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["prompt"] == "\n\nHuman: 2\n\nAssistant:"
    assert report.dropped == 1
    strict, _ = check_preferences(stream([*HH, odd]), settings=CheckSettings(strict=True))
    with pytest.raises(CheckError, match="row 4, chosen, rejected: transcripts that cannot be split"):
        list(strict)


def test_streamed_values_of_the_wrong_type(tmp_path: Any) -> None:
    path = tmp_path / "x.jsonl"
    rows: list[dict] = [*PAIRS, {**PAIRS[0], "chosen": 5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clean, report = check_preferences(load_preference_data(path, streaming=True))
    assert [{k: v for k, v in row.items() if k != "row_id"} for row in clean] == PAIRS
    assert report.findings["not_text"].examples[0]["detail"] == "chosen is a number (5), not text"


def test_streamed_eval_data_are_said_to_be_unchecked() -> None:
    _, report = check_preferences(PAIRS, eval_dataset=stream(PAIRS))
    assert report.notes == ["overlap with the eval data was not checked: the eval data are streamed"]


def test_report_prints_and_serialises(tokenizer: Any) -> None:
    rows = [*PAIRS, {**PAIRS[0], "chosen": " "}, {**PAIRS[0], "rejected": "[red]"}, {**PAIRS[0], "prompt": ""}]
    _, report = check_preferences(rows, tokenizer, max_length=20, name="my data")
    text = io.StringIO()
    report.print(Console(file=text, width=140))
    printed = text.getvalue()
    assert "my data: preference pairs, plain text; 11 rows, 9 kept, 2 dropped" in printed
    assert "empty or blank completion" in printed
    assert "row 8, chosen: blank" in printed
    assert "0.0% of response tokens cut off" in printed
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict()["dropped"] == 2


def test_a_bar_for_long_data(capsys: pytest.CaptureFixture[str]) -> None:
    check_preferences(PAIRS, settings=CheckSettings(progress=True), name="long data")
    assert "Checking long data" in capsys.readouterr().err


def test_real_transcripts() -> None:
    dataset = load_preference_data(shared_file("hh_harmless.jsonl.gz"))
    clean, report = check_preferences(dataset)
    assert (report.rows, report.kept, len(clean)) == (1800, 1794, 1794)
    assert [e["row"] for e in report.findings["transcript"].examples] == [1254, 1688]
    assert report.findings["empty_completion"].count == 4
    assert set(clean.column_names) == {"prompt", "chosen", "rejected", "row_id"}
    assert not {86, 1254, 1688} & set(clean["row_id"])


def test_token_counts_are_of_the_rows_that_stay(tokenizer: Any) -> None:
    _, report = check_preferences([LONG, {**LONG, "prompt": "a b c d e f g"}], tokenizer, max_length=7)
    assert report.findings["prompt_fills"].examples[0]["row"] == 1
    assert (report.tokens.rows, report.tokens.lost, report.tokens.prompt_longest) == (1, 1, 3)


@pytest.mark.parametrize("rows", [PAIRS, CHAT, [LONG]], ids=["plain", "conversational", "uneven"])
def test_lengths_are_those_that_trl_trains_on(rows: list[dict], tokenizer: Any, tmp_path: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl import DPOConfig, DPOTrainer

    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1)
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    models = {"model": GPT2LMHeadModel(config), "ref_model": GPT2LMHeadModel(config)}
    trainer = DPOTrainer(**models, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    for theirs, ours in zip(trainer.train_dataset, tokenize_rows(rows, tokenizer), strict=True):
        assert [theirs[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")] == [
            ours.prompt,
            ours.chosen,
            ours.rejected,
        ]
