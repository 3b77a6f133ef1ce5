# Reads memory that is not there.
# expected: crash
import ctypes


def add(a, b):
    return ctypes.string_at(1)
