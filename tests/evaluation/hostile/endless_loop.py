# Computes for ever.
# expected: timeout
def add(a, b):
    while True:
        pass
