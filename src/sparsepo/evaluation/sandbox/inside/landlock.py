"""Landlock: which files a process may read and write, without privileges (Linux 6.2; TCP 6.7; signals 6.12)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from . import kernel

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_WRITE_FILE = 1 << 1
# Rights of the file system by version of the interface; later ones have 16
_OLDEST = 3
_RIGHTS = {3: 15, 4: 15}
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scope")]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """Version of the kernel's interface.

    Raises:
        OSError: the kernel has none, or it is switched off.
    """
    return kernel.syscall(_CREATE, None, 0, _VERSION_FLAG)


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """From now on this process and its children read only beneath ``readable``, write only beneath ``writable``, make no
    TCP connection (version 4), and reach no process outside by signals or abstract sockets (version 6).

    Raises:
        OSError: not to be had here.
    """
    abi = version()
    if abi < _OLDEST:
        raise OSError(38, f"Landlock {abi} is too old ({_OLDEST} is needed): files outside could be emptied")
    every = (1 << _RIGHTS.get(abi, 16)) - 1
    rules = _Ruleset(every, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    handle = kernel.syscall(_CREATE, ctypes.byref(rules), size, 0)
    try:
        for paths, rights in ((readable, _READ), (writable, every), (("/dev/null",), _READ | _WRITE_FILE)):
            for path in paths:
                _allow(handle, path, rights & every)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.syscall(_RESTRICT, handle, 0)
    finally:
        os.close(handle)


def _allow(handle: int, path: str, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_ONLY
        kernel.syscall(_ADD_RULE, handle, 1, ctypes.byref(_Beneath(rights, folder)), 0)
    finally:
        os.close(folder)
