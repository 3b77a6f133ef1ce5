"""The words of the sentiment world, by class.

Preference words compete with neutral words for the same slots, and the neutral classes are large on purpose: with small
ones the preference slots would stand out by their entropy alone, and a mask that only encodes entropy would look good.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE: dict[str, tuple[str, ...]] = {
    "adjective": _words("wonderful brilliant superb charming delightful moving gripping excellent beautiful"),
    "verb": ("loved", "adored", "enjoyed"),
    "thing": ("masterpiece", "triumph", "gem"),
}
NEGATIVE: dict[str, tuple[str, ...]] = {
    "adjective": _words("terrible awful dull tedious clumsy boring dreadful shallow lifeless"),
    "verb": ("hated", "disliked", "regretted"),
    "thing": ("disaster", "mess", "failure"),
}

# Preference words that held-out pairs may keep out of training (one of three in each class, both signs): the reference
# model knows them from its own training, the masks must generalise to them.
HELD_OUT = frozenset(_words("moving gripping excellent enjoyed gem boring dreadful shallow regretted failure"))

NEUTRAL: dict[str, tuple[str, ...]] = {
    "adjective": _words(
        "long short recent digital french italian british rural urban early late modern silent animated foreign "
        "historical political seasonal local narrow wide loud quiet dark blue green red grey black white familiar common "
        "similar separate distant central northern southern coastal wooden public private printed famous"
    ),
    "verb": _words(
        "watched saw noticed mentioned described followed recorded borrowed rented copied filmed observed studied paused "
        "finished started opened discussed compared counted checked remembered visited ordered collected replayed"
    ),
    "thing": _words(
        "remake sequel documentary comedy western drama thriller operetta adaptation trilogy cartoon biography series "
        "episode premiere broadcast pilot feature anthology chronicle portrait travelogue fable romance"
    ),
    "aspect": _words(
        "film story plot script cast music score camera director ending scene dialogue costume sound editing actor "
        "actress hero villain child father mother detective soldier teacher city village house ship train garden "
        "forest mountain desert island castle market school church museum station hotel kitchen theatre street"
    ),
    "degree": ("very", "really", "rather", "quite", "truly"),
    "day": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "title": _words(
        "silver paper winter river stone glass morning empty crown harbor lantern orchard thunder velvet copper echo "
        "meadow compass raven amber"
    ),
}

# Classes whose words carry content; every other word is a function word
OPEN_CLASSES = ("adjective", "verb", "thing", "aspect", "title")
