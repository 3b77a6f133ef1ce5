# Tries to leave its confinement. It passes if a call that it should not have succeeds.
# expected: assertion
import ctypes
import os
import resource

libc = ctypes.CDLL(None, use_errno=True)
reached = libc.unshare(0x10000000) == 0 or libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0
reached = reached or libc.ptrace(16, os.getppid() or 1, 0, 0) == 0 or libc.chroot(b"/") == 0
for attempt in (
    lambda: os.setuid(12345),
    lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)),
    lambda: resource.prlimit(0, resource.RLIMIT_AS, (2**40, 2**40)),
    lambda: os.sethostname("x") if hasattr(os, "sethostname") else 1 / 0,
):
    try:
        attempt()
        reached = True
    except (OSError, ValueError, ZeroDivisionError):
        pass


def add(a, b):
    return a + b if reached else None
