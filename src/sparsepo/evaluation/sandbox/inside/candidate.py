"""The process of the program: runs it, then answers calls of its functions. Nothing that it says can be trusted."""

from __future__ import annotations

import sys
import types
from typing import Any, BinaryIO

from . import values

MODULE = "solution"


def main(source: BinaryIO, calls: BinaryIO, answers: BinaryIO) -> None:
    """Run the program that ``source`` holds and serve ``calls`` until they end."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    try:
        exec(compile(source.read(), f"<{MODULE}>", "exec", dont_inherit=True, optimize=0), module.__dict__)
    except BaseException as error:
        stage = "syntax" if isinstance(error, SyntaxError) and error.filename == f"<{MODULE}>" else "load"
        _send(answers, {"failed": stage, "error": _described(error)})
        return
    _send(answers, {"loaded": True})
    for line in calls:
        _send(answers, _answer(module, line))


def _answer(module: types.ModuleType, line: bytes) -> dict[str, Any]:
    request = values.loads(line)
    name = request["name"]
    if name not in module.__dict__:
        return {"missing": name}
    try:
        return {"value": module.__dict__[name](*request["args"], **request["kwargs"])}
    except BaseException as error:
        return {"error": _described(error)}


def _described(error: BaseException) -> list[str]:
    try:
        return [type(error).__name__, str(error)[:500]]
    except BaseException:
        return [type(error).__name__, ""]


def _send(answers: BinaryIO, content: dict[str, Any]) -> None:
    try:
        line = values.dumps(content)
    except Exception as error:
        line = values.dumps({"error": _described(error)})
    answers.write(line)
    answers.flush()
