# A grandchild in a session of its own that would outlive everything. It passes if it could be made.
# expected: assertion
import os
import time

reached = False
try:
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    reached = True
except OSError:
    pass


def add(a, b):
    return a + b if reached else None
