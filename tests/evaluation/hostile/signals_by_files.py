# Makes other processes those that the kernel signals for a socket. It passes if one, or the signal, could be set.
# expected: assertion
import ctypes
import fcntl
import os
import socket
import struct

ends = socket.socketpair()  # of no network; the two ioctls are for sockets
reader = ends[0].fileno()
libc = ctypes.CDLL(None, use_errno=True)
calls = {"x86_64": 72, "aarch64": 25}  # of fcntl: the upper half of its command, which the kernel ignores, hides nothing
hidden, number = ctypes.c_ulong(1 << 32 | 15), ctypes.c_long(calls[os.uname().machine])
reached = False
for process in (os.getppid(), @CALLER@):
    if process == 0:  # of another table of processes
        continue
    owner = struct.pack("ii", 1, process)  # F_OWNER_PID
    for attempt in (
        lambda: fcntl.fcntl(reader, 8, process),  # F_SETOWN
        lambda: fcntl.fcntl(reader, 15, owner),  # F_SETOWN_EX
        lambda: fcntl.fcntl(reader, 10, 9),  # F_SETSIG, SIGKILL
        lambda: fcntl.ioctl(reader, 0x8901, struct.pack("i", process)),  # FIOSETOWN
        lambda: fcntl.ioctl(reader, 0x8902, struct.pack("i", process)),  # SIOCSPGRP
    ):
        try:
            attempt()
            reached = True
        except OSError:
            pass
    if libc.syscall(number, ctypes.c_long(reader), hidden, ctypes.create_string_buffer(owner)) == 0:
        reached = True


def add(a, b):
    return a + b if reached else None
