# Signals other processes: the parent, the caller, all. It passes if one could be reached.
# expected: assertion
import os
import signal

reached = False
for process in (os.getppid(), @CALLER@):
    try:
        if process != 0:
            os.kill(process, 0)
            reached = True
    except OSError:
        pass
try:
    if os.getppid() != 0:
        os.kill(os.getppid(), signal.SIGKILL)
        reached = True
except OSError:
    pass


def add(a, b):
    return a + b if reached else None
