# Memory that no address space counts: anonymous files. It passes if it got one.
# expected: assertion
import os

reached = False
try:
    os.memfd_create("x")
    reached = True
except OSError:
    pass


def add(a, b):
    return a + b if reached else None
