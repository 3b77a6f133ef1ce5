"""A root folder, process table, network and users of one's own, in which nothing but the standard library is to be seen."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import kernel

_ALL = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
NOBODY = 65534
SCRATCH = "/tmp"


def leave() -> None:
    """Leave the surrounding namespaces; the next child is the first process of its own.

    A process of the superuser gets its user from :func:`map_users`, which its parent calls: inside it is another user of
    the system, whose number of processes is limited. Any other process stays who it is.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.call("unshare", _ALL)
    if user != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {user} 1")
        _write("/proc/self/gid_map", f"0 {group} 1")


def map_users(process: int) -> None:
    """For a child of the superuser that has left: its user 0 is ``nobody`` outside."""
    _write(f"/proc/{process}/uid_map", f"0 {NOBODY} 1")
    _write(f"/proc/{process}/gid_map", f"0 {NOBODY} 1")


def enter(readable: Sequence[str], scratch_bytes: int) -> None:
    """The first process of the namespaces makes its root: ``readable`` read-only, and an empty /tmp in memory.

    Raises:
        OSError: the system does not allow it.
    """
    # opened by the user that the process has outside: what lies in a private folder can be shown, its neighbours cannot
    shown = [_Shown(path) for path in (*readable, *_DEVICES) if os.path.exists(path)]
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", "/tmp", "tmpfs", safe, "size=256k,nr_inodes=256,mode=0755")
    root = "/tmp"
    for one in shown:
        one.show_in(root)
    os.makedirs(root + SCRATCH, exist_ok=True)
    kernel.mount("tmpfs", root + SCRATCH, "tmpfs", safe, f"size={scratch_bytes},nr_inodes=4096,mode=0700")
    kernel.mount("none", root, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | safe)
    os.chdir(root)
    kernel.call("pivot_root", b".", b".")
    kernel.call("umount2", b".", kernel.MNT_DETACH)
    os.chdir(SCRATCH)


class _Shown:
    """A folder, file or link outside that is to be seen inside."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.link = os.readlink(path) if os.path.islink(path) else None
        self.is_folder = os.path.isdir(path)
        self.handle = os.open(path, os.O_PATH)

    def show_in(self, root: str) -> None:
        target = root + self.path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if self.link is not None:
            os.symlink(self.link, target)
        elif self.is_folder:
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        if self.link is None:
            kernel.mount(f"/proc/self/fd/{self.handle}", target, None, kernel.MS_BIND | kernel.MS_REC)
            if self.path not in _DEVICES:
                kernel.make_read_only(target)
        os.close(self.handle)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
