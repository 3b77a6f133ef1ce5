# Processes by the system call itself, past Python. It passes if it made one.
# expected: assertion
import ctypes
import platform

libc = ctypes.CDLL(None, use_errno=True)
fork, clone, clone3 = (57, 56, 435) if platform.machine() == "x86_64" else (220, 220, 435)
reached = libc.syscall(fork, 17, 0, 0, 0, 0) >= 0 or libc.syscall(clone, 17, 0, 0, 0, 0) >= 0


def add(a, b):
    return a + b if reached else None
