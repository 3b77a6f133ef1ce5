"""``sparsepo plan``: memory, time and disk of a run before it is started."""

from __future__ import annotations

import argparse
from typing import Any

from sparsepo.loading import positions_in

from .base import CliError

_ABOUT = """What a run will take on each device, before anything is downloaded or started: memory by part, time of a step and
of the run, disk of a reference cache, and, where it does not fit, what to change and what each change saves. The model's
weights are never loaded: its config is enough. Values from --config are those of a training recipe; flags override them."""
_EPILOG = """examples:
  sparsepo plan EleutherAI/pythia-1.4b --gpu H100 --pairs 160000 --max_length 2048 --batch_size 8
  sparsepo plan --config recipes/hh_common.yaml --gpu A100-80GB --pairs 160000
  sparsepo plan --params 70e9 --layers 80 --hidden 8192 --vocab 128256 --gpu H200 --sharding fsdp2 --devices 16"""
# Flags whose values are a PlanSettings field of that name
_FIELDS = ("pairs", "prompt_tokens", "response_tokens", "max_length", "epochs", "objective", "mask", "lora_r", "precision",
           "batch_size", "accumulation", "sharding", "devices", "optimizer", "scorer_memory_mib")  # fmt: skip


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register ``plan``; the namespace's ``func`` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="memory, time and disk of a run, and what to change when it does not fit",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(parser.add_argument_group("model"))
    _add_run(parser.add_argument_group("run (unset: the recipe's, or the trainer's default)"))
    _add_device(parser.add_argument_group("devices"))
    parser.add_argument("--changes", action="store_true", help="list what could be changed even if the run fits")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    parser.set_defaults(func=run)
    return parser


def _add_model(group: Any) -> None:
    group.add_argument("model", nargs="?", help="hub id, folder, or config.json")
    group.add_argument("--config", metavar="RECIPE", help="a recipe of `sparsepo train`")
    group.add_argument("--trust_remote_code", action="store_true", help="run code that the model's repository brings")
    for name, kind, text in (
        ("params", float, "parameters, such as 8e9, instead of a model (a Llama of the sizes below)"),
        ("layers", int, "blocks"),
        ("hidden", int, "width"),
        ("vocab", int, "vocabulary"),
        ("heads", int, "attention heads (hidden / 128 unless given)"),
        ("intermediate", int, "width of the MLP (from --params unless given)"),
    ):
        group.add_argument(f"--{name}", type=kind, help=text)


def _add_run(group: Any) -> None:
    group.add_argument("--pairs", type=int, help="preference pairs (10,000 unless given)")
    group.add_argument("--prompt_tokens", type=int, help="of an average prompt (a quarter of max_length)")
    group.add_argument("--response_tokens", type=int, help="of an average response (a quarter of max_length)")
    group.add_argument("--max_length", type=int, help="of the longest row: memory is planned for it")
    group.add_argument("--epochs", type=float, help="passes over the data")
    group.add_argument("--objective", help="sparsepo, mapo, tdpo1, tdpo2, dpo, simpo, dpop")
    group.add_argument("--mask", choices=("learned", "activation", "other", "none"), help="unset: the objective's")
    group.add_argument("--lora", action="store_true", default=None, help="train adapters on all linear layers")
    group.add_argument("--lora_r", type=int, help="their rank")
    group.add_argument(
        "--load_in_4bit", action="store_true", default=None, help="frozen weights with 4 bits (QLoRA); with --lora"
    )
    group.add_argument(
        "--precision",
        choices=("mixed", "bf16", "fp32"),
        help="mixed: float32 weights, bfloat16 arithmetic (the trainer's way on a GPU); bf16: bfloat16 weights too",
    )
    group.add_argument("--batch_size", type=int, help="pairs of a micro-batch on one device")
    group.add_argument("--accumulation", type=int, help="micro-batches of a step")
    group.add_argument("--no_checkpointing", action="store_true", default=None, help="without gradient checkpointing")
    group.add_argument("--precompute_ref", action="store_true", default=None, help="the reference from a cache on disk")
    group.add_argument("--optimizer", choices=("adamw", "adamw_8bit", "sgd"), help="optimiser")
    group.add_argument("--scorer_memory_mib", type=float, help="of the fused scorer's rows of logits")


def _add_device(group: Any) -> None:
    group.add_argument("--gpu", default=None, help="such as H100, H200, A100-80GB, L40S, RTX4090 (H100 unless given)")
    group.add_argument("--gpu_memory", type=float, metavar="GIB", help="by hand: memory of a device, GiB")
    group.add_argument("--gpu_flops", type=float, metavar="TFLOPS", help="by hand: dense bfloat16 TFLOPS")
    group.add_argument("--gpu_bandwidth", type=float, metavar="GB/S", help="by hand: memory bandwidth, GB/s")
    group.add_argument("--sharding", choices=("none", "ddp", "fsdp2", "zero2", "zero3"), help="several devices")
    group.add_argument("--devices", type=int, help="number of devices")
    group.add_argument(
        "--utilisation", type=float, help="share of the device's TFLOPS that products reach (measured: docs/plan.md)"
    )


def run(args: argparse.Namespace) -> int:
    """Plan, print. Returns 0; 1 if the run does not fit."""
    import logging
    import warnings

    from rich.console import Console

    from sparsepo.planning.report import make_plan
    from sparsepo.planning.shapes import shape_of

    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(torch|peft|transformers).*")
    device = _device(args)
    recipe = _recipe(args)
    name, config = _model(args, recipe.pop("model", None))
    settings = _settings(args, recipe, config)
    console = Console(stderr=args.json)
    with console.status("Following a step of the run") as status:
        plan = make_plan(
            shape_of(config, name), settings, device, args.utilisation, args.changes,
            lambda text: status.update(f"Looking at {text}"),
        )  # fmt: skip
    if args.json:
        import json

        print(json.dumps(plan.to_dict(), indent=1))
    else:
        from .plan_tables import print_plan

        print_plan(plan)
    return 0 if plan.fits else 1


def _device(args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from sparsepo.planning.devices import GB, GIB, Device, device_of

    by_hand = (args.gpu_memory, args.gpu_flops)
    for name in ("gpu_memory", "gpu_flops", "gpu_bandwidth", "utilisation"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise CliError(f"--{name} {value:g} must be above 0.")
    if args.gpu is None and any(by_hand):
        if not all(by_hand):
            raise CliError("Give --gpu_memory and --gpu_flops together, or a --gpu whose other numbers are known.")
        # about what cards of that speed have: 3 bytes for 1,000 operations
        bandwidth = (args.gpu_bandwidth or 3.0 * args.gpu_flops) * GB
        return Device("by hand", args.gpu_memory * GIB, args.gpu_flops * 1e12, bandwidth, 32 * GB, "given")
    device = device_of(args.gpu or "H100")
    return replace(
        device,
        memory=device.memory if args.gpu_memory is None else args.gpu_memory * GIB,
        bf16_flops=device.bf16_flops if args.gpu_flops is None else args.gpu_flops * 1e12,
        bandwidth=device.bandwidth if args.gpu_bandwidth is None else args.gpu_bandwidth * GB,
    )


def _model(args: argparse.Namespace, from_recipe: str | None) -> tuple[str, Any]:
    """Name and config."""
    from sparsepo.planning.shapes import config_by_hand, config_of

    sizes = {name: getattr(args, name) for name in ("params", "layers", "hidden", "vocab", "heads", "intermediate")}
    if any(value is not None for value in sizes.values()):
        if args.model is not None:
            raise CliError(f"Give either a model ({args.model}) or sizes by hand, not both.")
        missing = [f"--{name}" for name in ("layers", "hidden", "vocab") if not sizes[name]]
        if missing:
            raise CliError(f"A model by hand needs {', '.join(missing)} as well.")
        return "by hand", config_by_hand(**sizes)
    name = args.model or from_recipe
    if not name:
        raise CliError("No model: give a hub id, a folder or a config.json, sizes by hand (--params …), or --config.")
    try:
        return name, config_of(name, args.trust_remote_code)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise CliError(
            f"{name!r}: no config ({reason}). Give a folder, a config.json, or sizes by hand "
            "(--params --layers --hidden --vocab)."
        ) from error


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
    if args.config is None:
        return {}
    from .plan_recipes import settings_of_recipe

    return settings_of_recipe(args.config)


def _settings(args: argparse.Namespace, recipe: dict[str, Any], config: Any) -> Any:
    from sparsepo.objectives import get_objective_class
    from sparsepo.planning.settings import PlanSettings

    values = dict(recipe)
    values |= {name: getattr(args, name) for name in _FIELDS if getattr(args, name) is not None}
    switches = ("lora", "load_in_4bit", "precompute_ref")
    values |= {name: True for name in switches if getattr(args, name)}
    if args.no_checkpointing:
        values["checkpointing"] = False
    positions = positions_in(config) or 1024
    if values.get("max_length") is None:
        values["max_length"] = min(1024, positions)
    if values["max_length"] > positions:
        raise CliError(f"max_length={values['max_length']} is more than the model's {positions} positions.")
    quarter = max(1, values["max_length"] // 4)
    values.setdefault("prompt_tokens", quarter)
    values.setdefault("response_tokens", quarter)
    kind = get_objective_class(values.get("objective", "sparsepo"))
    if "mask" not in values:
        values["mask"] = "none" if not kind.reads_masks else "activation" if kind.name == "mapo" else "learned"
    elif values["mask"] != "none" and not kind.reads_masks:
        raise CliError(f"objective={kind.name} reads no mask; leave --mask out.")
    if values.get("devices", 1) > 1:
        values.setdefault("sharding", "ddp")
    return PlanSettings(**values)
