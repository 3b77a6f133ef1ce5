# Threads until there are no more to be had. It passes if it got 2,000.
# expected: assertion exception memory
import threading
import time

reached = False
made = 0
try:
    for made in range(2000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    reached = True
except (RuntimeError, MemoryError):
    pass


def add(a, b):
    return a + b if reached else None
