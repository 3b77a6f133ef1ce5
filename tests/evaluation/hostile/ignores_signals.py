# Ignores every signal that can be ignored, and computes for ever.
# expected: timeout
import signal

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def add(a, b):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
