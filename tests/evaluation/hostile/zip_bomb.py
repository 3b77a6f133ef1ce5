# A small text that unpacks to gigabytes.
# expected: memory timeout
import zlib

packer = zlib.compressobj(9)
block = b"\0" * 2**22
packed = b"".join(packer.compress(block) for _ in range(100))
packed += packer.flush()


def add(a, b):
    parts = []
    while True:
        parts.append(zlib.decompress(packed))
