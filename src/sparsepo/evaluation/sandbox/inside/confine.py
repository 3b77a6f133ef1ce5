"""One process, confined before anything of it is not ours: layers, limits, open files, environment."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

# all of them now: when a layer is on, this package's files can no longer be read
from . import kernel, landlock, namespaces, seccomp

NAMESPACES, LANDLOCK, SECCOMP = "namespaces", "landlock", "seccomp"
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/lib32", "/etc/ld.so.cache", "/nix/store", "/gnu/store")


class Orders(NamedTuple):
    """What a process is confined to.

    Args:
        layers: which of the layers to put on; each must succeed.
        limits: by name: ``cpu_seconds``, ``memory_bytes``, ``file_bytes``, ``scratch_bytes``, ``threads``, ``open_files``.
        scratch: its folder for files where it has no /tmp of its own.
        paths: entries of ``sys.path``.
    """

    layers: tuple[str, ...]
    limits: dict[str, int]
    scratch: str
    paths: tuple[str, ...]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Orders:
        """From the launcher's configuration."""
        return cls(tuple(content["layers"]), content["limits"], content["scratch"], tuple(content["paths"]))

    @property
    def readable(self) -> list[str]:
        """Folders and files that may be read: the standard library and the system's shared libraries."""
        prefix = os.path.dirname(os.path.dirname(os.__file__))  # …/lib: shared libraries of this Python
        return [path for path in dict.fromkeys((*_LIBRARIES, prefix, *self.paths, *sys.path)) if os.path.exists(path)]


def confine(orders: Orders, keep: Sequence[int]) -> None:
    """Confine this process. Its open files ``keep`` become 3, 4, …; all others but the first three are closed.

    Raises:
        OSError: a layer cannot be had.
    """
    folder = orders.scratch
    if NAMESPACES in orders.layers:
        namespaces.enter(orders.readable, orders.limits["scratch_bytes"])
        folder = namespaces.SCRATCH
    os.chdir(folder)
    _keep_only(keep)
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, LANG="C.UTF-8", PATH="/usr/bin:/bin")
    if LANDLOCK in orders.layers:
        landlock.restrict(orders.readable, [folder])
    _privileges_and_limits(orders)
    if SECCOMP in orders.layers:
        seccomp.install()


def _keep_only(keep: Sequence[int]) -> None:
    high = [os.dup2(handle, 200 + place) for place, handle in enumerate(keep)]
    for place, handle in enumerate(high):
        os.dup2(handle, 3 + place)
    os.closerange(3 + len(keep), 4096)


def _privileges_and_limits(orders: Orders) -> None:
    limits = orders.limits
    wanted = {
        "RLIMIT_CPU": limits["cpu_seconds"],
        "RLIMIT_AS": limits["memory_bytes"],
        "RLIMIT_FSIZE": limits["file_bytes"],
        "RLIMIT_NPROC": limits["threads"],
        "RLIMIT_NOFILE": limits["open_files"],
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL))
