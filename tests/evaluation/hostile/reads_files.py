# Reads a file outside, and those that name users and passwords. It passes if it read one.
# expected: assertion
reached = False
for path in ("@CANARY@/kept.txt", "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/root/.bashrc", "/etc/hostname"):
    try:
        with open(path) as file:
            reached = bool(file.read()) or reached
    except OSError:
        pass


def add(a, b):
    return a + b if reached else None
