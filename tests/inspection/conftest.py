"""Records of a small trained run, one of whose rows is hostile, and Chromium where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparsepo import SparsePOTrainer
from sparsepo.cli.small_models import train_tokenizer
from sparsepo.inspection import PairRecord, collect
from tests.support import preference_rows, tiny_model
from tests.training.running import run_config

HOSTILE = {
    "prompt": "the film <script>window.broken = 1</script> \u202eabc\u202c",
    "chosen": ' good & "warm" \' </script><img src=x onerror="window.broken = 2">',
    "rejected": " bad\n\tslow \u2066 ${window.broken = 3} {{ 7 * 7 }} \u0000",
}


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> SparsePOTrainer:
    return trained(tmp_path_factory.mktemp("run"), mask_target_sparsity=0.4)


def trained(folder: Path, **settings: Any) -> SparsePOTrainer:
    from datasets import Dataset

    rows = Dataset.from_list([HOSTILE, *preference_rows(15)])
    config = run_config(folder, **{"max_steps": 8, "learning_rate": 1e-3, **settings})
    sizes = {"vocab_size": len(byte_tokenizer()), "n_positions": 512, "max_position_embeddings": 512}
    made = SparsePOTrainer(
        model=tiny_model("gpt2", **sizes),
        ref_model=tiny_model("gpt2", **sizes),
        args=config,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=byte_tokenizer(),
    )
    made.train()
    return made


def byte_tokenizer() -> Any:
    """Bytes and a few merges: any text survives, and a character may take several tokens."""
    return train_tokenizer([" good bad warm slow film scene the was"] * 20, 290)


@pytest.fixture(scope="session")
def records(trainer: SparsePOTrainer) -> list[PairRecord]:
    batches = trainer.get_eval_dataloader()
    return list(collect(batches, trainer.score, trainer.objective, trainer.processing_class))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: SPARSEPO_CHROMIUM, or one on the path."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("SPARSEPO_CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium found: install it (apt-get install chromium) or set SPARSEPO_CHROMIUM to its path")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def watched(browser: Any, path: Path, ready: str = "html[data-ready]", width: int = 1200) -> Iterator[Any]:
    """A page opened from disk without a network; it must leave no message, error or request."""
    context = browser.new_context(viewport={"width": width, "height": 800}, offline=True)
    page = context.new_page()
    problems: list[str] = []

    def asked(request: Any) -> None:
        if not request.url.startswith(("file://", "data:")):
            problems.append(request.url)

    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", asked)
    page.goto(path.as_uri())
    page.wait_for_selector(ready)
    yield page
    assert problems == []
    context.close()


def does_not_overflow(page: Any) -> bool:
    """Whether nothing is wider than the window."""
    found: bool = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    return found
