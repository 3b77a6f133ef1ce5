# Ends its process as if all were well.
# expected: exit
import os


def add(a, b):
    os._exit(0)
