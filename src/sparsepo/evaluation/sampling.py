"""Prompts → sampled and scored completions in a file: prompt by prompt, resumable, every sample with seed and score."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sparsepo.data import DataError
from sparsepo.data.writing import check_output, replacing, write_rows

from .generation import Prompt, sample_completions
from .json_lines import lines_of
from .rewards import Reward

Row = dict[str, Any]
# Progress: prompts done, prompts in all
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn.

    Args:
        samples: completions a prompt.
        max_new_tokens: longest completion.
        temperature: 0 takes the most likely token.
        top_p: nucleus sampling; 1 keeps every token.
        seed: of the draws.
        max_prompt_length: prompts are cut to their last tokens; None: they are not. Of a local model only.

    Raises:
        ValueError: a setting out of range.
    """

    samples: int = 8
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    max_prompt_length: int | None = None

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts at which a completion ends; see :class:`sparsepo.evaluation.code.CodeSamplingSettings`."""
        return ()

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be at least 0 (0 takes the most likely token).")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (1 keeps every token).")


@dataclass(frozen=True)
class Sample:
    """One completion.

    Args:
        text: without special tokens.
        finished: whether the end token was reached; None where a server does not say.
        tokens: how many were drawn, the end token included; None where a server does not say.
        seed: with the number of the prompt and of the sample it decides the draw; of a server, the seed it was sent.
    """

    text: str
    finished: bool | None
    tokens: int | None
    seed: int


class Sampler(ABC):
    """Draws completions of prompts.

    Attributes:
        model: what rows call the model.
        settings: how it draws.
        prompts_at_once: how many prompts are worth handing over together.
    """

    model: str
    settings: SamplingSettings
    prompts_at_once: int = 1

    @abstractmethod
    def sample(self, numbers: Sequence[int], prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Sample]]]:
        """(place in ``prompts``, its ``settings.samples`` completions), as they get done.

        Args:
            numbers: of the prompts in the whole list, which decide the draws.
            prompts: texts or conversations.
        """

    @abstractmethod
    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise ``ValueError`` for prompts that cannot be sampled, before any work."""


class LocalSampler(Sampler):
    """A Hugging Face model in this process.

    Args:
        model, tokenizer: of :func:`sparsepo.evaluation.sample_completions`.
        name: what rows call the model.
        settings: how it draws.
        batch_size: completions generated together (no effect on the result).
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, settings: SamplingSettings, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        self.policy, self.tokenizer, self.model, self.settings = model, tokenizer, name, settings
        self.batch_size = batch_size
        self.prompts_at_once = max(1, batch_size // settings.samples)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that leave no room for a completion."""
        from .generation import encode_prompts

        s = self.settings
        encode_prompts(self.policy, self.tokenizer, prompts, s.max_new_tokens, s.max_prompt_length)

    def sample(self, numbers: Sequence[int], prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Sample]]]:
        """Batched generation, see :func:`sparsepo.evaluation.sample_completions`."""
        s = self.settings
        groups = sample_completions(
            self.policy,
            self.tokenizer,
            prompts,
            max_new_tokens=s.max_new_tokens,
            samples_per_prompt=s.samples,
            temperature=s.temperature,
            top_p=s.top_p,
            seed=s.seed,
            numbers=numbers,
            max_prompt_length=s.max_prompt_length,
            stop=s.stop,
            batch_size=self.batch_size,
        )
        for place, group in enumerate(groups):
            yield place, [Sample(one.text, one.finished, len(one.token_ids), s.seed) for one in group]


def sample_to_file(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    reward: Reward | None,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    model_files: str | None = None,
) -> list[Row]:
    """Sample, score and write ``output`` (.jsonl, .jsonl.gz, .parquet), which ``sparsepo data pairs`` reads.

    While it runs, rows are kept in ``output.partial``, a prompt at a time; the same call goes on from there.

    Args:
        sampler: draws the completions.
        prompts: texts or conversations.
        reward: scores them; None: rows have no reward.
        output: file that is written once all is done.
        overwrite: replace a finished file, and begin an unfinished one anew.
        progress: called after each prompt.
        model_files: what tells the model from another of the same name, such as one that was trained again since.

    Returns:
        The rows: prompt, text, reward, the reward's name, number of the prompt and of the sample, seed, whether and after
        how many tokens the completion ended, and the settings.

    Raises:
        DataError: the output cannot be written, or an unfinished one has other prompts or settings.
    """
    path = check_output(Path(output), overwrite)
    sampler.check(prompts)
    settings = {"model": sampler.model, **asdict(sampler.settings)}
    del settings["seed"]  # every row has its own
    identity = {
        **settings,
        "seed": sampler.settings.seed,
        "reward": None if reward is None else reward.name,
        "prompts": _digest(prompts),
        "model_files": model_files,
    }
    partial = _Partial(path.with_name(f"{path.name}.partial"), identity, sampler.settings.samples, overwrite)
    missing = [number for number in range(len(prompts)) if number not in partial.done]
    for start in range(0, len(missing), sampler.prompts_at_once):
        numbers = missing[start : start + sampler.prompts_at_once]
        for place, samples in sampler.sample(numbers, [prompts[number] for number in numbers]):
            number = numbers[place]
            partial.add(number, _rows(number, prompts[number], samples, reward, settings))
            if progress is not None:
                progress(len(partial.done), len(prompts))
    rows = [row for number in range(len(prompts)) for row in partial.done[number]]
    write_rows(rows, path, overwrite)
    partial.remove()
    return rows


def _rows(
    number: int, prompt: Prompt, samples: Sequence[Sample], reward: Reward | None, settings: Mapping[str, Any]
) -> list[Row]:
    rewards = (
        [None] * len(samples) if reward is None else reward([prompt] * len(samples), [one.text for one in samples])
    )
    return [
        {
            "prompt": prompt,
            "text": one.text,
            **({} if reward is None else {"reward": value, "reward_name": reward.name}),
            "prompt_number": number,
            "sample": place,
            "seed": one.seed,
            "finished": one.finished,
            "tokens": one.tokens,
            "settings": dict(settings),
        }
        for place, (one, value) in enumerate(zip(samples, rewards, strict=True))
    ]


def _digest(prompts: Sequence[Prompt]) -> str:
    return blake2b(json.dumps(list(prompts), sort_keys=True).encode(), digest_size=8).hexdigest()


class _Partial:
    """The rows of an unfinished file: a line that says what it belongs to, then a prompt's rows at a time.

    ``done`` maps the number of a prompt to its rows; of a prompt that was cut off nothing is kept.
    """

    def __init__(self, path: Path, identity: Row, samples: int, overwrite: bool) -> None:
        self.path = path
        self.done: dict[int, list[Row]] = {}
        if path.is_file() and not overwrite:
            self._read(identity, samples)
        with replacing(path) as fresh, fresh.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"sampling": identity}, ensure_ascii=False) + "\n")
            file.writelines(_lines(own) for own in self.done.values())

    def _read(self, identity: Row, samples: int) -> None:
        lines = lines_of(self.path.read_text(encoding="utf-8"))
        try:
            before = json.loads(lines[0])["sampling"]
        except (IndexError, ValueError, KeyError, TypeError):
            raise DataError(f"{self.path} is no unfinished sampling; delete it, or give another output.") from None
        for name in identity:
            if before.get(name) != identity[name]:
                raise DataError(
                    f"{self.path} holds unfinished samples with {name}={before.get(name)!r}, now it is {identity[name]!r}: "
                    "give the same settings to go on, --overwrite (overwrite=True) to begin anew, or another output."
                )
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except ValueError:  # where the run was cut off
                continue
            self.done.setdefault(row["prompt_number"], []).append(row)
        self.done = {number: own for number, own in self.done.items() if len(own) == samples}

    def add(self, number: int, rows: list[Row]) -> None:
        """Keep a prompt's rows."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(rows))
        self.done[number] = rows

    def remove(self) -> None:
        """The finished file holds all of it."""
        self.path.unlink(missing_ok=True)


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
