"""BERTScore, by the library of its authors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .requirements import optional

_UNLIMITED = 10**6  # tokenizers without a limit say 10^30, which the tokenizers' library cannot take


class BertScorer:
    """BERTScore F1 of summaries against references, without idf weights and without rescaling.

    Args:
        model: hub id or folder of an encoder.
        num_layers: the layer whose states are compared. None: what the library's authors chose, known for the models that
            they list; a folder is looked up by its own name.
        device: None: a GPU where there is one.
        batch_size: texts a batch.

    Source:
        Zhang et al. 2020, "BERTScore" (arXiv 1904.09675).

    Raises:
        ValueError: no layer is known for the model, or it has fewer.
        ImportError: ``bert-score`` is not installed.
    """

    def __init__(
        self, model: str, num_layers: int | None = None, device: str | None = None, batch_size: int = 32
    ) -> None:
        package = optional("bert_score", "BERTScore")
        optional("bert_score.utils", "BERTScore")
        self.model, self.num_layers = model, layer_of(model, num_layers)
        try:
            self._scorer: Any = package.BERTScorer(
                model_type=model, num_layers=self.num_layers, batch_size=batch_size, device=device
            )
        except AssertionError as error:  # the library's own check of the number of layers
            raise ValueError(f"bert_layers={self.num_layers}: {error}") from error
        tokenizer = self._scorer._tokenizer
        if tokenizer.model_max_length > _UNLIMITED:
            tokenizer.model_max_length = max_tokens(self._scorer._model.config)

    def __call__(self, summaries: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """F1 of each summary, at most 1; with several references the largest. An empty summary has 0.

        Texts beyond the encoder's length are cut there, as the library does.

        Args:
            summaries: texts.
            references: one or more for each.
        """
        rows = [
            (place, summary, [r for r in own if r.strip()])
            for place, (summary, own) in enumerate(zip(summaries, references, strict=True))
        ]
        kept = [row for row in rows if row[1].strip() and row[2]]
        found = [0.0] * len(summaries)
        if kept:
            _, _, f1 = self._scorer.score([row[1] for row in kept], [row[2] for row in kept])
            for (place, _, _), value in zip(kept, f1.tolist(), strict=True):
                found[place] = float(value)
        return found


def layer_of(model: str, num_layers: int | None) -> int:
    """The layer to compare: the one given, or the one that the library's authors chose for the model.

    Raises:
        ValueError: none is given and the library does not list the model.
    """
    if num_layers is not None:
        return num_layers
    known: dict[str, int] = optional("bert_score.utils", "BERTScore").model2layers
    for name in (model, Path(model).name):
        if name in known:
            return int(known[name])
    raise ValueError(
        f"bert_model={model!r} is not among the models for which bert-score has chosen a layer; give bert_layers, such as "
        "two thirds of the encoder's layers."
    )


def max_tokens(config: Any) -> int:
    """Most tokens, special ones included, that an encoder takes: its positions, less those that RoBERTa's kind reserves."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 512)
    pad = getattr(config, "pad_token_id", None)
    reserved = (pad or 0) + 1 if config.model_type in _OFFSET_FAMILIES else 0
    return positions - reserved if positions - reserved > 0 else 512


# Their position numbers start behind the padding token's id
_OFFSET_FAMILIES = frozenset(
    ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "data2vec-text", "bart")
)
