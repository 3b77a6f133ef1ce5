# Fills the disk: one file, then many. It passes if more than 64 MB fitted.
# expected: assertion exception files
written = 0
try:
    for number in range(100):
        with open(f"file{number}", "wb") as file:
            for _ in range(4):
                written += file.write(b"x" * 2**20)
                file.flush()
except OSError:
    pass
reached = written > 64 * 2**20


def add(a, b):
    return a + b if reached else None
