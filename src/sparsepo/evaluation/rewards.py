"""Rewards of completions: one interface over classifiers, reward models, word lists and the playground's known words.

``get_reward("classifier:siebert/sentiment-roberta-large-english")`` gives an object that is called with prompts and
completions. What stands before the colon is a key of :data:`REWARDS`; a further kind is one more entry there.
"""

from __future__ import annotations

import importlib
import inspect
import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .generation import Prompt


class Reward(ABC):
    """Scores completions of prompts; higher is better.

    Attributes:
        name: what files and axes call it: the specification that made it.
        reads: what it looks at, in words.
    """

    name: str = ""
    reads: str = "the completion"

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """One finite number a completion.

        Args:
            prompts: texts, or conversations (lists of role/content messages).
            completions: a text for each prompt, as it was sampled.

        Raises:
            ValueError: as many completions as prompts are not given, or a reward is no finite number (names the row).
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions; give one for each.")
        values = [float(value) for value in self.score(prompts, completions)] if prompts else []
        for row, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(f"Reward {self.name} of row {row} is {value}, no finite number: {completions[row]!r}.")
        return values

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequence[float]:
        """The numbers; what a subclass writes."""

    def notes(self) -> list[str]:
        """What a user should know of the scores given so far: texts that were cut, for example."""
        return []


@dataclass(frozen=True)
class RewardKind:
    """One kind of reward.

    Args:
        usage: how it is written.
        about: what it is.
        factory: ``module:function``, called with what stands behind the colon and with options; imported when needed.
        needs_argument: whether something must stand behind the colon.
    """

    usage: str
    about: str
    factory: str
    needs_argument: bool = True


REWARDS: dict[str, RewardKind] = {
    "classifier": RewardKind(
        "classifier:MODEL[:LABEL]",
        "probability (or logit) of a class by a sequence classifier, folder or hub id; LABEL: POSITIVE unless given",
        "sparsepo.evaluation.reward_classifiers:classifier_reward",
    ),
    "regression": RewardKind(
        "regression:MODEL",
        "the number of a reward model with one output, folder or hub id",
        "sparsepo.evaluation.reward_classifiers:regression_reward",
    ),
    "lexicon": RewardKind(
        "lexicon:ZIP[,ZIP]",
        "σ(positive − negative words) by VADER's or the opinion lexicon's zip file, or both",
        "sparsepo.evaluation.rewards:lexicon_reward",
    ),
    "code-tests": RewardKind(
        "code-tests:BENCHMARK:FILE[:PROMPT]",
        "1 where a program passes its problem's tests (humaneval, mbpp), run in a sandbox",
        "sparsepo.evaluation.code.reward:code_reward",
    ),
    "playground": RewardKind(
        "playground",
        "the known words of the playground's reviews",
        "sparsepo.playground.reward:playground_reward",
        needs_argument=False,
    ),
}


def get_reward(spec: str, **options: Any) -> Reward:
    """The reward that a specification names.

    Args:
        spec: such as ``classifier:MODEL:POSITIVE``; see :data:`REWARDS`.
        options: of its kind, such as ``batch_size`` (``classifier`` and ``regression``).

    Raises:
        ValueError: an unknown kind (lists those known), no model or file named, or an option that the kind does not take.
    """
    kind, factory = _resolve(spec)
    accepted = set(inspect.signature(factory).parameters) - {"argument"}
    unknown = sorted(set(options) - accepted)
    if unknown:
        takes = ", ".join(sorted(accepted)) or "none"
        raise ValueError(f"{', '.join(unknown)} has no effect on reward {spec!r}; options of {kind}: {takes}.")
    reward: Reward = factory(spec.partition(":")[2], **options)
    reward.name = spec
    return reward


def check_reward(spec: str) -> None:
    """Refuse a specification that cannot be meant, without loading anything.

    Raises:
        ValueError: see :func:`get_reward`.
    """
    _resolve(spec)


def reward_help() -> str:
    """One line a kind, for help texts and errors."""
    width = max(len(kind.usage) for kind in REWARDS.values())
    return "\n".join(f"  {kind.usage:<{width}}  {kind.about}" for kind in REWARDS.values())


def _resolve(spec: str) -> tuple[str, Any]:
    name, _, argument = spec.partition(":")
    kind = REWARDS.get(name)
    if kind is None:
        raise ValueError(f"reward {spec!r} is unknown; rewards are\n{reward_help()}")
    if bool(argument) != kind.needs_argument:
        raise ValueError(f"reward {spec!r}: write {kind.usage}. Rewards are\n{reward_help()}")
    module, _, function = kind.factory.partition(":")
    return name, getattr(importlib.import_module(module), function)


class LexiconReward(Reward):
    """σ(#positive − #negative words) of the completion, in (0, 1): what the playground's reward is, on real words.

    It counts words: negation ("not good"), irony and words outside the lists are not seen, and function words do not count.

    Args:
        words: the lists.
    """

    def __init__(self, words: Any) -> None:
        self.words = words

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Of each completion; the prompts are not read."""
        from .text_spans import FUNCTION_WORDS, words_of

        found = []
        for text in completions:
            signs = [self.words.sign(word) for word, _ in words_of(text) if word not in FUNCTION_WORDS]
            found.append(1 / (1 + math.exp(-max(-700, min(700, sum(signs))))))
        return found


def lexicon_reward(argument: str) -> LexiconReward:
    """:class:`LexiconReward` of one or two zip files, told apart by what they hold.

    Raises:
        ValueError: a file that is missing or no such list, or two of one kind.
    """
    from .word_lists import read_sentiment_words

    paths: dict[str, str] = {}
    for given in argument.split(","):
        path = str(Path(given).expanduser())
        kind = _kind_of_list(path)
        if kind in paths:
            raise ValueError(f"lexicon:{argument}: {paths[kind]} and {path} are the same list; give one.")
        paths[kind] = path
    return LexiconReward(read_sentiment_words(**paths))


def _kind_of_list(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"lexicon:{path}: there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"lexicon:{path} is no zip file; give the word list as nltk_data has it.") from error
    if "vader_lexicon.txt" in names:
        return "vader"
    if {"positive-words.txt", "negative-words.txt"} <= names:
        return "opinion"
    raise ValueError(
        f"lexicon:{path} holds neither vader_lexicon.txt nor positive-words.txt and negative-words.txt; give VADER's or "
        "the opinion lexicon's zip file as nltk_data has it."
    )
