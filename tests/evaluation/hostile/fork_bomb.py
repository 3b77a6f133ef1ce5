# Processes that make processes. It passes if it made one.
# expected: assertion
import os

reached = False
for _ in range(6):
    try:
        reached = os.fork() >= 0 or reached
    except OSError:
        break
    if reached:
        break


def add(a, b):
    return a + b if reached else None
