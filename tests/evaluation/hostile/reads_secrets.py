# Looks for a secret in its own environment and in those of other processes.
# expected: assertion
import glob
import os

texts = [repr(os.environ)]
for path in [*glob.glob("/proc/*/environ"), *glob.glob("/proc/*/cmdline"), "/proc/self/mem"]:
    try:
        with open(path, "rb") as file:
            texts.append(repr(file.read(2**20)))
    except OSError:
        pass
try:
    import ctypes

    pointer = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    place = 0
    while pointer[place]:
        texts.append(repr(pointer[place]))
        place += 1
except (ValueError, OSError):
    pass
reached = any("@SECRET@"[::-1] in text for text in texts)


def add(a, b):
    return a + b if reached else None
