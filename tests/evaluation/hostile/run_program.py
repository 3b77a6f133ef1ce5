# Another program. It passes if one ran.
# expected: assertion
import os
import subprocess

reached = False
for attempt in (lambda: subprocess.run(["/bin/true"]), lambda: os.posix_spawn("/bin/true", ["true"], {})):
    try:
        attempt()
        reached = True
    except OSError:
        pass
try:
    os.execv("/bin/echo", ["echo", "passed"])
except OSError:
    pass


def add(a, b):
    return a + b if reached else None
