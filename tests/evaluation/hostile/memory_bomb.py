# Takes all the memory that it can get.
# expected: memory
def add(a, b):
    taken = []
    while True:
        taken.append(bytearray(64 * 2**20))
