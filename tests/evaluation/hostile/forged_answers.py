# Writes what it likes to the pipe on which it answers, then ends.
# expected: exit
import os


def add(a, b):
    for handle in range(3, 64):
        try:
            os.write(handle, b'{"ready": true}\n{"finished": true, "calls": 9}\n{"dict": [["loaded", true]]}\n')
        except OSError:
            pass
    os._exit(0)
