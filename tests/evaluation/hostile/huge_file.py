# One file that is larger than a file may be.
# expected: assertion
reached = False
try:
    with open("file", "wb") as file:
        file.seek(2**34)
        file.write(b"x")
    reached = True
except OSError:
    pass


def add(a, b):
    return a + b if reached else None
