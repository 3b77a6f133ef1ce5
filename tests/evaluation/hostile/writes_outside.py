# Writes a file outside. It passes if one could be written.
# expected: assertion
import os
import sys

reached = False
for folder in ("@CANARY@", "/", "/root", "/etc", "/var/tmp", "/dev/shm", "/usr/lib", os.path.dirname(os.__file__), *sys.path):
    try:
        with open(os.path.join(folder, "written_by_sandboxed_program"), "w") as file:
            file.write("x")
        os.remove(file.name)
        reached = True
    except OSError:
        pass
try:
    os.rename("@CANARY@/kept.txt", "@CANARY@/other.txt")
    reached = True
except OSError:
    pass
try:
    os.chmod("@CANARY@/kept.txt", 0o777)
    reached = True
except OSError:
    pass
try:
    os.symlink("@CANARY@", "link")
    open("link/through_a_link", "w").close()
    reached = True
except OSError:
    pass


def add(a, b):
    return a + b if reached else None
