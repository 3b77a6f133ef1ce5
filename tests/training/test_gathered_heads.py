"""Under ZeRO-3 a head's weight is empty outside the module's own forward: scoring happens while the heads are gathered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sparsepo.training import trl_bridge
from tests.support import perturbed, tiny_model

from .cache_runs import trainer_of


class Zero3:
    """Stands in for ZeRO-3: the heads' weights have no elements but inside its context."""

    def __init__(self, *models: Any) -> None:
        self.parameters = [model.get_output_embeddings().weight for model in models]
        self.whole = [parameter.detach().clone() for parameter in self.parameters]
        self.entered = 0
        self.release()

    def release(self) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.data.new_empty(0)

    def gather(self, parameters: Any) -> None:
        for parameter, whole in zip(self.parameters, self.whole, strict=True):
            if any(parameter is other for other in parameters):
                parameter.data = whole.clone()

    @contextmanager
    def context(self, *parameters: Any) -> Iterator[None]:
        self.entered += 1
        self.gather(parameters)
        try:
            yield
        finally:
            self.release()


def models() -> dict[str, Any]:
    # apart from the embeddings, which a backbone's own forward would gather
    reference = tiny_model("llama", tie_word_embeddings=False)
    return {"model": perturbed(reference), "ref_model": reference}


@pytest.mark.parametrize("scorer", ["fused", "dense"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_scorer_is_called_with_whole_heads(
    tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch, scorer: str, cached: bool
) -> None:
    cache = tmp_path / "cache" if cached else None
    trainer = trainer_of(tmp_path, rows, models=models(), cache=cache, scorer=scorer)
    batch = trainer.data_collator([rows[0], rows[1]])
    expected = trainer.score(batch)
    split = Zero3(*(model for model in (trainer.model, trainer.ref_model) if model is not None))
    assert trainer.model.get_output_embeddings().weight.numel() == 0
    monkeypatch.setattr(trl_bridge, "maybe_gather_lm_head_ctx", split.context)
    seen = []
    scored = trainer.scorer

    def watched(inputs: Any, *rest: Any) -> Any:
        seen.append((inputs.policy_head.weight.numel(), inputs.reference_head.weight.numel()))
        return scored(inputs, *rest)

    trainer.scorer = watched
    found = trainer.score(batch)
    assert seen == [(split.whole[0].numel(), split.whole[0].numel())]
    assert trainer.model.get_output_embeddings().weight.numel() == 0
    for side in ("chosen", "rejected"):
        for name in ("policy_logps", "ref_logps", "kl"):
            assert torch.equal(getattr(getattr(found, side), name), getattr(getattr(expected, side), name))


def test_without_the_context_the_stand_in_fails(tmp_path: Path, rows: Dataset) -> None:
    """Guards the test above."""
    trainer = trainer_of(tmp_path, rows, models=models())
    Zero3(trainer.model, trainer.ref_model)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        trainer.score(trainer.data_collator([rows[0], rows[1]]))


def test_the_cache_is_filled_with_a_whole_head(tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is gathered for its values and for the copy of it, wherever the reference's own forward has left it."""
    entered: list[int] = []
    gather = trl_bridge.maybe_gather_lm_head_ctx

    def counted(*parameters: Any) -> Any:
        entered.append(sum(parameter is not None for parameter in parameters))
        return gather(*parameters)

    monkeypatch.setattr(trl_bridge, "maybe_gather_lm_head_ctx", counted)
    trainer_of(tmp_path, rows, models=models(), cache=tmp_path / "cache")
    assert entered == [1, 1, 1, 1]  # its size, the copy, and two batches of 8 rows
