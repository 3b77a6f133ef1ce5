# Puts modules of its own in place of those that tests or harness might use.
# expected: assertion
import sys
import types


class Anything(types.ModuleType):
    def __getattr__(self, name):
        return lambda *args, **kwargs: True


for name in ("json", "unittest", "math", "builtins", "tests", "inside.examiner", "inside.values", "operator"):
    sys.modules[name] = Anything(name)


def add(a, b):
    return None
