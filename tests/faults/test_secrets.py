"""Access tokens never reach what a run writes or prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsepo.cli.main import main
from sparsepo.cli.run_folder import command_line, write_summary
from sparsepo.redaction import is_secret_name, redacted, redacted_content
from tests.cli.conftest import SHORT_RUN, write_rows
from tests.support import preference_rows, tiny_model, tiny_tokenizer

SECRETS = {
    "HF_TOKEN": "hf_" + "Zq7" * 11,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_API_KEY": "sk-proj-" + "Ab9_" * 8,
    "MY_SECRET": "a plain phrase of mine",
}
IN_FLAG, IN_ADDRESS = "flag-token-value-77", "user:letmein99"


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_secrets")
def test_a_run_leaves_no_secret_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All files of a run and all that it prints, with secrets in the environment, in flags and in addresses."""
    model, data, out = tmp_path / "model", tmp_path / "pairs.jsonl", tmp_path / "out"
    tiny_model("gpt2").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    write_rows(data, list(preference_rows(8)))  # type: ignore[arg-type]
    flags = [f"--hub_token={IN_FLAG}", "--run_name", f"https://{IN_ADDRESS}@host/x?token=abcdef", "--hub_model_id"]
    flags += [f"me/{SECRETS['MY_SECRET'].replace(' ', '-')}"]
    arguments = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, *SHORT_RUN, *flags]
    assert main(["train", *map(str, arguments)]) == 0
    printed = capfd.readouterr()
    assert (
        main(["train", *map(str, arguments), "--output_dir", str(tmp_path / SECRETS["HF_TOKEN"] / "x"), "--mask=x"])
        != 0
    )
    failed = capfd.readouterr()
    texts = {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"train_summary.json", "report.html", "README.md", "sparsepo.json"} <= {Path(name).name for name in texts}
    texts |= {"printed": (printed.out + printed.err).encode(), "failed": (failed.out + failed.err).encode()}
    for name, content in texts.items():
        for secret in (*SECRETS.values(), IN_FLAG, IN_ADDRESS, "token=abcdef"):
            assert secret.encode() not in content, f"{secret} in {name}"


def test_what_counts_as_a_secret() -> None:
    for name in (
        "--hub_token",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "push_to_hub_token",
        "apikey",
        "DB_PASSWORD",
        "aws_secret",
    ):
        assert is_secret_name(name), name
    for name in ("pad_token_id", "--max_tokens", "mean_token_accuracy", "num_tokens", "eos_token_id", "key"):
        assert not is_secret_name(name), name


@pytest.mark.usefixtures("_secrets")
def test_redaction(tmp_path: Path) -> None:
    assert redacted(f"x {SECRETS['WANDB_API_KEY']} y") == "x ... y"
    assert redacted("hf_abcdefghijklmnopqrst") == "..."
    assert redacted("https://a:b@host/x?token=secret&page=2") == "https://...@host/x?token=...&page=2"
    assert redacted("the token is kept; a user@host.org; 2 @ 3") == "the token is kept; a user@host.org; 2 @ 3"
    content = {
        "model_init_kwargs": {"token": "short"},
        "data": [f"hf://{IN_ADDRESS}@x"],
        "pad_token_id": 3,
        "token": None,
    }
    expected = {"model_init_kwargs": {"token": "..."}, "data": ["hf://...@x"], "pad_token_id": 3, "token": None}
    assert redacted_content(content) == expected
    assert write_summary(str(tmp_path), content) == expected
    assert (
        command_line("train", ["--api_key", "abc", "--x", SECRETS["HF_TOKEN"]])
        == "sparsepo train --api_key ... --x ..."
    )


def test_nothing_is_hidden_where_the_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert redacted("abc def") == "abc def"
