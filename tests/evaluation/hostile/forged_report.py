# Writes reports of success to every open file, and printed ones.
# expected: assertion exit exception timeout
import os

REPORT = b'{"ready": true}\n{"test": 0, "passed": true}\n{"test": 1, "passed": true}\n{"finished": true, "calls": 2}\n'
OUTCOME = b'{"report": [{"finished": true, "calls": 2}], "passed": true}\n'


def add(a, b):
    for handle in (1, 2, *range(6, 64)):
        for text in (REPORT, OUTCOME, b"passed\n", b"OK\n"):
            try:
                os.write(handle, text)
            except OSError:
                pass
    return None
