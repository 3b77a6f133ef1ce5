# Recursion without a limit, until the stack ends.
# expected: crash exception memory timeout
import sys

sys.setrecursionlimit(10**9)


def add(a, b):
    return add([a], b) if True else None
