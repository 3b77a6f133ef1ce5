"""A filter of system calls: no new processes or programs, no sockets, no hold on other processes or on the kernel."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from . import kernel

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_CLONE_THREAD = 0x00010000
_OTHER_ABI = 0x40000000  # x32 calls on x86-64

# name → number on x86-64, on arm64 (None: there is no such call)
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "unshare": (272, 97),
    "setns": (308, 268), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "personality": (135, 92),
    # network
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    # files by other doors, mounts
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "quotactl": (179, 60), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    # rights, owners, times and attributes of files, which Landlock leaves alone; lengths, which its first versions do
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    # calls that go round this filter, and much-attacked parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "iopl": (172, None), "ioperm": (173, None),
}  # fmt: skip
# allowed where the first argument is this process (kill, tgkill) or 0 (prlimit64: itself)
_SELF_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
# refused where the second argument is one of these: the kernel would send signals, to any process, for a file
_SIGNALS_BY_FILES = {
    "fcntl": ((72, 25), (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
    "ioctl": ((16, 29), (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def program(machine: str, process: int) -> list[tuple[int, int, int, int]]:
    """The filter's instructions.

    Args:
        machine: as ``uname -m`` says.
        process: identifier of the process that it is for.

    Raises:
        OSError: the numbers of this machine's calls are not known here.
    """
    if machine not in _MACHINES or sys.byteorder != "little":
        raise OSError(_ENOSYS, f"seccomp: no table of system calls for {machine}")
    architecture, column = _MACHINES[machine]
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    lines += [(_LOAD, 0, 0, _NUMBER), (_JUMP_AT_LEAST, 0, 1, _OTHER_ABI), (_RETURN, 0, 0, _KILL)]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | _EPERM)]
    # "no such call": the C library then makes threads by clone, whose flags can be looked at
    lines += [(_JUMP_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERROR | _ENOSYS)]
    lines += _allowed_if(_CLONE[column], (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD))
    for name, numbers in _SELF_ONLY.items():
        lines += _allowed_if(numbers[column], (_JUMP_EQUAL, 0, 1, 0 if name == "prlimit64" else process))
    for numbers, commands in _SIGNALS_BY_FILES.values():
        lines += _refused_if(numbers[column], commands)
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _allowed_if(number: int, test: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """A call is allowed where its first argument (its lower half: the kernel takes these as int) passes a test."""
    answer = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | _EPERM)]
    return [(_JUMP_EQUAL, 0, 4, number), (_LOAD, 0, 0, _FIRST_ARGUMENT), test, *answer]


def _refused_if(number: int, commands: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """A call is refused where its second argument (its lower half: the kernel takes these as int) is one of these."""
    lines = [(_LOAD, 0, 0, _FIRST_ARGUMENT + 8)]
    for command in commands:
        lines += [(_JUMP_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ERROR | _EPERM)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return [(_JUMP_EQUAL, 0, len(lines), number), *lines]


def install() -> None:
    """Put the filter on this process, for good.

    Raises:
        OSError: not to be had here.
    """
    lines = program(os.uname().machine, os.getpid())
    packed = b"".join(struct.pack("<HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    filled = _Program(len(lines), ctypes.addressof(buffer))
    kernel.call("prctl", kernel.PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(filled))
