"""The system calls that confine a process, through ctypes (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 24, 28
PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 22, 36, 38
_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63
_NO_ROOT_POWERS = 0b11 | 0b1100  # SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP, both locked

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """A function of the C library.

    Raises:
        OSError: it returned an error, or the library lacks it.
    """
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(38, f"{name}: not in this system's C library") from None
    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    """A system call by number; integers are passed as long."""
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return call("syscall", ctypes.c_long(number), *wide)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def make_read_only(target: str) -> None:
    """A mount and those below it: no writing, no set-user-id programs, no devices (mount_setattr, Linux 5.12)."""
    attributes = _MountAttributes(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        target.encode(),
        _AT_RECURSIVE,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )


def prctl(option: int, value: object = 0) -> None:
    """prctl(2) with one argument."""
    wide = ctypes.c_ulong(value) if isinstance(value, int) else value
    call("prctl", ctypes.c_int(option), wide, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def drop_capabilities() -> None:
    """No capability is left, and none can be had again, not even by running a set-user-id program."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:  # 22: there are fewer of them; 1: a process without privileges has none to drop
            if error.errno not in (1, 22):
                raise
    with contextlib.suppress(PermissionError):  # a process without capabilities cannot gain any, by no_new_privs
        prctl(PR_SET_SECUREBITS, _NO_ROOT_POWERS)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
