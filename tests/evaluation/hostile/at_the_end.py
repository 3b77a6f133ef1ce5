# Leaves things to do when the process ends: exit handlers, finalisers, threads.
# expected: assertion
import atexit
import threading
import time


def for_ever():
    while True:
        time.sleep(0.01)


class Clingy:
    def __del__(self):
        while True:
            time.sleep(1)


atexit.register(for_ever)
threading.Thread(target=for_ever).start()
thing = Clingy()


def add(a, b):
    return None
