"""The flags of every command that loads a model to read or sample from it."""

from __future__ import annotations

import argparse

DTYPES = ("float32", "bfloat16", "float16", "auto")


def add_loading_flags(
    group: argparse._ActionsContainer, dtype: str, *, dtype_unset: bool = False, flags_unset: bool = False
) -> None:
    """``--dtype``, ``--use_cpu`` and ``--trust_remote_code``.

    Args:
        group: where they are listed.
        dtype: the default that the help names.
        dtype_unset, flags_unset: None where they are not given, for commands that refuse them beside others.
    """
    default = None if dtype_unset else dtype
    group.add_argument("--dtype", default=default, choices=DTYPES, help=f"(default: {dtype})")
    flag = None if flags_unset else False
    group.add_argument("--use_cpu", action="store_true", default=flag, help="even where there is a GPU")
    group.add_argument(
        "--trust_remote_code", action="store_true", default=flag, help="for models with code of their own"
    )
