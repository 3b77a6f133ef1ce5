"""Points of a frontier: what one model gives on held-out prompts, measured once and kept whole with its samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsepo.data.writing import replacing
from sparsepo.masks import Masker

from .generation import Completion, Progress, Prompt, sample_completions
from .json_lines import lines_of
from .kl import divergences
from .rewards import Reward

Array = NDArray[np.float64]
SIDES = ("chosen", "rejected")
KLS = {
    "exact": "sequence KL(π ‖ π_ref), exact per token (nats)",
    "monte_carlo": "sequence KL(π ‖ π_ref), Monte-Carlo log-ratio (nats)",
    "masked": "masked sequence KL: Σ m_d KL(π ‖ π_ref) (nats)",
}
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
_FORMAT = 1


@dataclass(frozen=True)
class PointSettings:
    """How a model is sampled: at temperature 1 and without truncation, since only then do the KLs belong to the policy.

    Args:
        samples: completions a prompt.
        max_new_tokens: longest completion; rewards and KLs are those of completions cut there.
        seed: of the draws; the same numbers are used for every model.
        max_prompt_length: prompts are cut to their last tokens; None: they are not.
    """

    samples: int = 1
    max_new_tokens: int = 64
    seed: int = 0
    max_prompt_length: int | None = None


@dataclass(frozen=True)
class Point:
    """What was measured of one model.

    Args:
        rewards: (prompts, samples).
        kls: by the names of :data:`KLS`, (prompts, samples) each, nats; ``masked`` where there is a mask.
        tokens: length of each completion, the end token included, (prompts, samples).
        finished: whether it ended by itself, (prompts, samples).
        data: by side of the pairs and by ``forward_kl`` or ``masked_forward_kl``: KL(π_ref ‖ π) summed over each response's
            tokens, nats, (pairs,); empty without pairs.
        texts: of the completions, by prompt.
    """

    rewards: Array
    kls: dict[str, Array]
    tokens: Array
    finished: NDArray[np.bool_]
    data: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    texts: list[list[str]] = field(default_factory=list)


def measure_point(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    reward: Reward,
    settings: PointSettings,
    *,
    masker: Masker | None = None,
    pairs: Mapping[str, Sequence[Completion]] | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Point:
    """Sample a model, score its completions, and measure how far it is from its reference.

    Args:
        policy, reference: Hugging Face causal LMs with one vocabulary; the same object for the reference itself, whose KL
            is zero.
        tokenizer: theirs.
        prompts: held-out prompts.
        reward: scores the completions.
        settings: how to sample.
        masker: the run's mask, for the masked KL.
        pairs: by side, responses of data for KL(π_ref ‖ π).
        batch_size: completions at a time (no effect on the result).
        progress: called with (completions sampled, completions in all).
    """
    groups = sample_completions(
        policy,
        tokenizer,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        samples_per_prompt=settings.samples,
        seed=settings.seed,
        max_prompt_length=settings.max_prompt_length,
        batch_size=batch_size,
        progress=progress,
    )
    shape = (len(prompts), settings.samples)
    flat = [one for group in groups for one in group]
    asked = [prompt for prompt in prompts for _ in range(settings.samples)]
    rewards = np.array(reward(asked, [one.text for one in flat])).reshape(shape)
    data: dict[str, dict[str, list[float]]] = {}
    if policy is reference:
        kls = {name: np.zeros(shape) for name in ("exact", "monte_carlo")}
    else:
        own = divergences(policy, reference, flat, masker=masker, batch_size=batch_size)
        found = {"exact": own.kl, "monte_carlo": own.log_ratio, "masked": own.masked_kl}
        kls = {name: value.numpy().reshape(shape) for name, value in found.items() if value is not None}
        for side, responses in (pairs or {}).items():
            of_data = divergences(policy, reference, responses, masker=masker, batch_size=batch_size)
            sums = {"forward_kl": of_data.forward_kl, "masked_forward_kl": of_data.masked_forward_kl}
            data[side] = {name: value.tolist() for name, value in sums.items() if value is not None}
    return Point(
        rewards,
        kls,
        np.array([len(one.token_ids) for one in flat], dtype=np.float64).reshape(shape),
        np.array([one.finished for one in flat]).reshape(shape),
        data,
        [[one.text for one in group] for group in groups],
    )


class PointStore:
    """Points in a folder: ``KEY.jsonl`` holds every sample with prompt, text, seed, reward and KLs, ``KEY.json`` what the
    point is. The second is written last: where it is, the point is whole.

    Args:
        folder: made where it does not exist.
        prompts: of every point.
        settings: of every point.
    """

    def __init__(self, folder: str | Path, prompts: Sequence[Prompt], settings: PointSettings) -> None:
        self.folder, self.prompts, self.settings = Path(folder), list(prompts), settings

    def key(self, name: str, identity: Mapping[str, Any]) -> str:
        """A file name for a point: a readable part, and a digest of all that its numbers depend on."""
        whole = {**identity, **asdict(self.settings), "prompts": self.prompts, "format": _FORMAT}
        text = json.dumps(whole, sort_keys=True, default=str)
        readable = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name)[:60]
        return f"{readable}-{blake2b(text.encode(), digest_size=6).hexdigest()}"

    def get(
        self, name: str, identity: Mapping[str, Any], measure: Callable[[PointSettings], Point]
    ) -> tuple[Point, str, bool]:
        """The point of this identity, measured unless it is there; its key, and whether it was there."""
        key = self.key(name, identity)
        if (self.folder / f"{key}.json").is_file():
            return self.read(key), key, True
        point = measure(self.settings)
        self._write(key, point, identity)
        return self.read(key), key, False

    def read(self, key: str) -> Point:
        """A stored point."""
        content = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        lines = lines_of((self.folder / f"{key}.jsonl").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in lines]
        shape = (len(self.prompts), self.settings.samples)
        kls = {name: np.array([row["kl"][name] for row in rows]).reshape(shape) for name in rows[0]["kl"]}
        texts = [row["text"] for row in rows]
        return Point(
            np.array([row["reward"] for row in rows], dtype=np.float64).reshape(shape),
            kls,
            np.array([row["tokens"] for row in rows], dtype=np.float64).reshape(shape),
            np.array([row["finished"] for row in rows]).reshape(shape),
            content["data"],
            [texts[start : start + shape[1]] for start in range(0, len(texts), shape[1])],
        )

    def _write(self, key: str, point: Point, identity: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"{key}.jsonl") as file, file.open("w", encoding="utf-8") as opened:
            for number, prompt in enumerate(self.prompts):
                for sample in range(self.settings.samples):
                    at = number, sample
                    row = {
                        "prompt": prompt,
                        "text": point.texts[number][sample],
                        "prompt_number": number,
                        "sample": sample,
                        "seed": self.settings.seed,
                        "reward": float(point.rewards[at]),
                        "kl": {name: float(values[at]) for name, values in point.kls.items()},
                        "tokens": int(point.tokens[at]),
                        "finished": bool(point.finished[at]),
                    }
                    opened.write(json.dumps(row, ensure_ascii=False) + "\n")
        content = {"format": _FORMAT, **identity, "settings": asdict(self.settings), "data": point.data}
        with replacing(self.folder / f"{key}.json") as file:
            file.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def fingerprint(folder: str | Path, patterns: Sequence[str] = (*_WEIGHTS, "mask/*")) -> list[Any]:
    """What tells a model's files from others of the same place: names, sizes and times; of a hub id its name."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        return [str(folder)]
    files = sorted({file for pattern in patterns for file in place.glob(pattern)})
    return [str(place.resolve()), *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
