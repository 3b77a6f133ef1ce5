# No program.
# expected: syntax
def add(a, b) return a + b
