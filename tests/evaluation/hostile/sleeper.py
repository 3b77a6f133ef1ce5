# Waits for ever, without computing.
# expected: timeout
import time


def add(a, b):
    while True:
        time.sleep(1000)
