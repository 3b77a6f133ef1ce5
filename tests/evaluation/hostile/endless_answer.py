# Answers with a sequence that has no end.
# expected: assertion
import itertools


def add(a, b):
    return itertools.count()
