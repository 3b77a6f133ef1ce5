"""The studies as lists of tasks, the most informative first, so that a study that is cut short has said the most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .tasks import MaterialSettings, Task

Settings = dict[str, Any]
Setting = tuple[str, Settings]

# Of the playground: where a study does not vary them
BETA, ANCHOR, MASK_RATE = 0.5, 0.1, 2e-3
# a head that the preference loss alone teaches
PLAIN: Settings = {"mask_log_ratio_weight": 0.0, "mask_map": "linear"}
PLAIN_HEAD: Settings = {"beta": BETA, "kl_anchor": ANCHOR, "mask_learning_rate": MASK_RATE, **PLAIN}
TARGET_GATES = ("relu", "normalised", "clamped", "binary", "hard_concrete", "gumbel_sigmoid")  # take a target sparsity
TARGETS = (0.3, 0.6, 0.8)
ANCHORS = (0.0, 0.03, 0.1, 0.3, 1.0)
BASELINES = ("dpo", "tdpo1", "tdpo2", "dpop", "simpo", "mapo")
FRONTIER = (0.08, 0.16, 0.24, 0.36, 0.48, 0.64, 0.8, 1.0)  # shares of training at which policies are judged


def tasks_of(settings: Sequence[Setting], seeds: Sequence[int], **task: Any) -> list[Task]:
    """Every setting on every seed, seed by seed, so that a study that is cut short still compares settings."""
    materials = {name: task.pop(name) for name in ("unseen_words",) if name in task}
    return [
        Task(label, own, MaterialSettings(seed=seed, **materials), **task) for seed in seeds for label, own in settings
    ]


def learned(gate: str = "relu", target: float | None = None, **changes: Any) -> Setting:
    """A learned mask's name and settings: the library's defaults, gate, target and ``changes`` beside them."""
    return _named({"beta": BETA}, gate, target, changes)


def plain(gate: str = "relu", target: float | None = None, **changes: Any) -> Setting:
    """As :func:`learned`, of a head that the preference loss alone teaches; None removes a setting."""
    name, own = _named(PLAIN_HEAD, gate, target, changes)
    return f"no fit, {name}", own


def _named(base: Settings, gate: str, target: float | None, changes: Settings) -> Setting:
    own: Settings = {**base, "mask_gate": gate}
    if target is not None:
        own["mask_target_sparsity"] = target
    own |= changes
    own = {name: value for name, value in own.items() if value is not None}
    name = gate if target is None else f"{gate} {target:g}"
    shown = {name: value for name, value in changes.items() if value is not None}
    return ", ".join([name, *(f"{_short(key)} {_text(value)}" for key, value in shown.items())]), own


def _short(name: str) -> str:
    short = {"mask_learning_rate": "mask lr", "mask_l1_reward": "L1", "mask_l1_kl": "L1 kl", "kl_anchor": "anchor"}
    return short.get(name, name.removeprefix("mask_"))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def gates(seeds: Sequence[int]) -> list[Task]:
    """(a) Gate × start × mask learning rate × sparsity (target or L1) × position: which finds the tokens?"""
    rate = 2e-4  # the policy's; the heads' rates below are 10, 50 and 100 times as much, the default's 25 times
    settings: list[Setting] = [
        ("DPO", {"objective": "dpo", "beta": BETA, "kl_anchor": ANCHOR}),
        learned("relu"),
        plain("relu"),
        learned("relu", 0.6),
        plain("relu", 0.6),
        learned("normalised", 0.6),
        plain("normalised", 0.6),
        learned("relu", mask_position="token"),
    ]
    settings += [learned(gate) for gate in ("normalised", "clamped", "sigmoid", "sparsemax", "entmax")]
    settings += [learned("topk", mask_topk_share=share) for share in (0.2, 0.4)]
    settings += [learned(gate, 0.6) for gate in ("clamped", "binary", "hard_concrete", "gumbel_sigmoid")]
    settings += [learned("relu", mask_learning_rate=rate * factor) for factor in (10, 50, 100)]
    settings += [learned("relu", mask_l1_reward=weight, mask_l1_kl=weight) for weight in (0.005, 0.02)]
    settings += [learned("relu", mask_init=start) for start in ("published", "mapo")]
    settings += [learned("relu", 0.6, mask_init=start) for start in ("published", "mapo")]
    settings += [learned("relu", mask_map=form) for form in ("linear", "two_layer")]
    settings += [plain(gate, 0.6) for gate in ("binary", "hard_concrete", "gumbel_sigmoid", "clamped")]
    settings += [plain("sigmoid"), plain("topk", mask_topk_share=0.4)]
    settings += [
        plain("relu", mask_l1_reward=weight, mask_l1_kl=weight, mask_learning_rate=own)
        for weight in (0.005, 0.02)
        for own in (1e-3, 5e-3)
    ]
    settings += [plain("relu", 0.6, mask_init=start) for start in ("published", "mapo")]
    settings += [plain("normalised", 0.6, mask_learning_rate=own) for own in (1e-3, 5e-3)]
    settings += [plain("relu", 0.6, mask_position="token"), learned("normalised", 0.6, mask_position="token")]
    return tasks_of(settings, seeds, judged_at=(0.5, 1.0))  # as sparsity's, with which it has many runs in common


def learning(seeds: Sequence[int]) -> list[Task]:
    """What limits a head without the fit? Its rate, schedule and form, the anchor, β, the policy's rate, the steps."""
    fast: Settings = {"mask_activation": "leaky", "mask_learning_rate": 1e-2}
    base = plain("normalised", 0.6, **fast)
    settings: list[Setting] = [
        base,
        plain("normalised", 0.6, **{**fast, "mask_learning_rate": 2e-2}),
        plain("normalised", 0.8, **fast),
        plain("normalised", 0.3, **fast),
        plain("relu", 0.6, **fast),
        plain("sigmoid", mask_learning_rate=1e-2),
        plain("normalised", 0.6, **fast, mask_position="token"),
        plain("relu", mask_learning_rate=1e-2),
        plain("relu", 0.6, **fast, beta=BETA / 0.4),  # kept tokens have mask 1 on average: as much β as normalised
        plain("relu", 0.3, **fast, beta=BETA / 0.7),
        plain("relu", mask_learning_rate=2e-2),
        plain("relu", **fast),
        plain("normalised", 0.6, mask_learning_rate=1e-2),
        plain("normalised", mask_learning_rate=5e-3),
        plain("normalised", 0.6, **fast, mask_on="reward"),
        plain("normalised", 0.6, **fast, mask_sharing="independent"),
        plain("normalised", 0.6, **fast, mask_hold_steps=0.2),
        plain("normalised", 0.6, **fast, mask_lr_scheduler_type="constant_with_warmup"),
        plain("normalised", 0.6, **fast, mask_weight_decay=0.0),
        plain("normalised", 0.6, **fast, mask_map="two_layer"),
        plain("normalised", 0.6, **fast, kl_anchor=0.0),
        plain("normalised", 0.6, **fast, kl_anchor=1.0),
        plain("normalised", 0.6, **fast, beta=0.1),
        plain("normalised", 0.6, **fast, beta=1.0),
    ]
    changes: dict[str, dict[str, Any]] = {
        "500 steps": {"steps": 500},
        "batches of 24": {"batch_size": 24},
        "policy lr 1e-4": {"learning_rate": 1e-4},
        "policy lr 4e-4": {"learning_rate": 4e-4},
        "125 steps": {"steps": 125},
    }
    tasks = []
    for seed in seeds:
        own = tasks_of(settings, [seed])
        changed = [
            task
            for name, change in changes.items()
            for task in tasks_of([(f"{base[0]}, {name}", base[1])], [seed], **change)
        ]
        tasks += [*own[:6], changed[0], *own[6:], *changed[1:]]
    return tasks


def published(seeds: Sequence[int]) -> list[Task]:
    """(b) The published setting, and what each step from it to ours changes."""
    rate = 2e-4  # the policy's: the published head shares it
    off: Settings = {**PLAIN, "kl_anchor": 0.0}
    settings: list[Setting] = [
        ("published", {"preset": "published", "beta": BETA}),
        ("published, L1 0.001", {"preset": "published", "beta": BETA, "mask_l1_reward": 1e-3, "mask_l1_kl": 1e-3}),
        (
            "published start, mask lr × 10",
            {"mask_init": "published", "beta": BETA, "mask_learning_rate": 10 * rate} | off,
        ),
        ("from ones, mask lr × 1", {"mask_init": "ones", "beta": BETA, "mask_learning_rate": rate} | off),
        ("from ones, mask lr × 10", {"mask_init": "ones", "beta": BETA, "mask_learning_rate": 10 * rate} | off),
        ("… and anchor 0.1", {"beta": BETA, "mask_learning_rate": 10 * rate, "kl_anchor": ANCHOR} | PLAIN),
        ("… and target 0.6", plain("relu", 0.6)[1]),
        ("library's defaults", {"beta": BETA}),
    ]
    return tasks_of(settings, seeds)


def sharing(seeds: Sequence[int]) -> list[Task]:
    """(c) One mask for reward and KL, one each, or one side only."""
    kinds = {
        "common": {"mask_sharing": "common"},
        "independent": {"mask_sharing": "independent"},
        "reward only": {"mask_on": "reward"},
        "KL only": {"mask_on": "kl"},
    }
    settings = [
        (f"{name}, {'no target' if target is None else f'target {target:g}'}", learned("relu", target)[1] | own)
        for target in (None, 0.6)
        for name, own in kinds.items()
    ]
    return tasks_of(settings, seeds, judged_at=(0.5, 1.0))


def sparsity(seeds: Sequence[int]) -> list[Task]:
    """(d) What does sparsity itself add? Dense masks and other gates at equal budget, and sparsity forced down."""
    even: Settings = {"beta": BETA, "kl_anchor": ANCHOR}
    settings: list[Setting] = [
        ("dense (TDPO1's loss)", even | {"mask": "dense"}),
        ("random", even | {"mask": "random"}),
        ("random 0.6", even | {"mask": "random", "mask_random_sparsity": 0.6}),
        ("activations (MaPO)", even | {"objective": "mapo"}),
        learned("sigmoid"),
        learned("relu"),
        learned("normalised"),
        plain("sigmoid"),
        plain("relu"),
    ]
    settings += [learned("relu", target) for target in (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)]
    settings += [learned("topk", mask_topk_share=share) for share in (0.6, 0.4, 0.2, 0.1, 0.05)]
    settings += [learned("normalised", target) for target in (0.4, 0.8, 0.95)]
    settings += [learned(gate) for gate in ("sparsemax", "entmax")]
    settings += [learned(gate, 0.6) for gate in ("clamped", "binary", "hard_concrete", "gumbel_sigmoid")]
    return tasks_of(settings, seeds, judged_at=(0.5, 1.0))


def anchor(seeds: Sequence[int]) -> list[Task]:
    """(e) The KL anchor: its weight swept for every objective, with and without sparsity."""
    settings: list[Setting] = []
    for weight in sorted(ANCHORS, key=lambda value: (value not in (0.0, ANCHOR), value)):
        shown = f"anchor {weight:g}"
        for target in (None, 0.6):
            name, own = learned("relu", target)
            settings.append((f"SparsePO {name}, {shown}", own | {"kl_anchor": weight}))
        for objective in BASELINES:
            settings.append((f"{objective}, {shown}", baseline(objective) | {"kl_anchor": weight}))
    return tasks_of(settings, seeds, judged_at=(0.24, 0.48, 1.0))


def baseline(objective: str, beta: float | None = BETA) -> Settings:
    """Settings of an objective without a learned mask; SimPO's β is of another kind and stays its own default."""
    own: Settings = {"objective": objective}
    if objective != "simpo" and beta is not None:
        own["beta"] = beta
    return own


def targets(seeds: Sequence[int]) -> list[Task]:
    """Is a target sparsity held at the end of training?"""
    settings = [learned("relu", target) for target in TARGETS]
    settings += [learned(gate, target) for gate in TARGET_GATES if gate != "relu" for target in TARGETS]
    settings += [plain("relu", target) for target in TARGETS]
    settings += [
        (f"independent relu {target:g}", learned("relu", target)[1] | {"mask_sharing": "independent"})
        for target in TARGETS
    ]
    return tasks_of(settings, seeds, evaluation_prompts=64)


# What the library's defaults could become; the study "defaults" holds them to the ceiling
CANDIDATES: tuple[Setting, ...] = (
    ("library's defaults", {"beta": BETA}),
    learned("normalised", 0.6),
    learned("relu", 0.6),
)


def defaults(seeds: Sequence[int], candidates: Sequence[Setting] = CANDIDATES) -> list[Task]:
    """Do the defaults find the tokens? Beside DPO's log-ratio; then with preference words never seen in pairs."""
    settings = [*candidates, ("DPO", {"objective": "dpo", "beta": BETA, "kl_anchor": ANCHOR})]
    seen = tasks_of(settings, seeds)
    unseen = [(f"{name}, unseen words", own) for name, own in settings]
    return seen + tasks_of(unseen, seeds, unseen_words=True)


Grid = Callable[[Sequence[int]], list[Task]]
GRIDS: dict[str, Grid] = {
    "gates": gates,
    "learning": learning,
    "published": published,
    "sharing": sharing,
    "sparsity": sparsity,
    "anchor": anchor,
    "targets": targets,
    "defaults": defaults,
}
