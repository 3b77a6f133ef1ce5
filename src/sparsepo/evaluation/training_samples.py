"""Samples of fixed prompts while a model trains: a callback that the run does not notice."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sparsepo.data.writing import replacing

from .generation import Prompt
from .json_lines import lines_of
from .rewards import Reward
from .sampling import LocalSampler, SamplingSettings

logger = logging.getLogger(__name__)

FILE = "samples.jsonl"


class TrainingSamples(TrainerCallback):
    """Writes OUT/samples.jsonl: completions of the same prompts, drawn with the same random numbers, at step 0, every so
    many steps, and at the end.

    The run is the same with it and without: no random number of the run is drawn, no weight is touched, and every module's
    mode is restored. A resumed run goes on: samples of steps behind its checkpoint are removed. Where sampling fails in the
    middle of a run, the run goes on without it and says so.

    Args:
        tokenizer: of the model.
        prompts: texts or conversations.
        every: steps between two samplings.
        settings: how completions are drawn.
        reward: scores them; None: rows have no reward.
        batch_size: completions generated together.

    Raises:
        ValueError: no prompts, or ``every`` below 1.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        every: int,
        settings: SamplingSettings,
        reward: Reward | None = None,
        batch_size: int = 32,
    ) -> None:
        if not prompts:
            raise ValueError("TrainingSamples needs at least one prompt.")
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 step.")
        self.tokenizer, self.prompts, self.every, self.settings = tokenizer, list(prompts), every, settings
        self.reward, self.batch_size = reward, batch_size
        self._begun_at = 0
        self._failed = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse prompts without room, remove what an earlier run left, sample the start."""
        self._sampler(kwargs["model"]).check(self.prompts)
        path = Path(args.output_dir) / FILE
        if state.is_world_process_zero and path.is_file():
            kept = [row for row in read_samples(args.output_dir) if 0 < state.global_step >= row["step"]]
            with replacing(path) as file:
                file.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._begun_at = state.global_step
        if state.global_step == 0:
            self._sample(args, state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sample where it is time."""
        if state.global_step % self.every == 0:
            self._sample(args, state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last samples."""
        if state.global_step % self.every and state.global_step != self._begun_at:
            self._sample(args, state, kwargs["model"])

    def _sampler(self, model: Any) -> LocalSampler:
        return LocalSampler(model, self.tokenizer, "", self.settings, self.batch_size)

    def _sample(self, args: Any, state: Any, model: Any) -> None:
        """Every process samples (sharded models need all), the first one writes."""
        if self._failed:
            return
        try:
            groups = dict(self._sampler(model).sample(range(len(self.prompts)), self.prompts))
            if state.is_world_process_zero:
                self._write(Path(args.output_dir), state.global_step, groups)
        except Exception as error:
            self._failed = True
            logger.warning(
                "Samples of step %d failed, and no later ones will be drawn: %s: %s. The run goes on.",
                state.global_step,
                type(error).__name__,
                error,
            )

    def _write(self, folder: Path, step: int, groups: dict[int, list[Any]]) -> None:
        lines = []
        for number, prompt in enumerate(self.prompts):
            texts = [one.text for one in groups[number]]
            rewards = None if self.reward is None else self.reward([prompt] * len(texts), texts)
            for place, one in enumerate(groups[number]):
                row = {
                    "step": step,
                    "prompt": prompt,
                    "text": one.text,
                    **({} if rewards is None else {"reward": rewards[place]}),
                    "prompt_number": number,
                    "sample": place,
                    "seed": one.seed,
                    "finished": one.finished,
                    "tokens": one.tokens,
                }
                lines.append(_line(row))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def read_samples(output_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's samples; a line that was cut off by an interruption is left out."""
    rows = []
    for line in lines_of((Path(output_dir) / FILE).read_text(encoding="utf-8")):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
