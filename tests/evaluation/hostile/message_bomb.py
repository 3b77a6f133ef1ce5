# Answers with nonsense that is nested, and never ends its line.
# expected: exit crash memory timeout
import os


def add(a, b):
    while True:
        for handle in range(3, 8):
            try:
                os.write(handle, b"[" * 65536)
            except OSError:
                pass
