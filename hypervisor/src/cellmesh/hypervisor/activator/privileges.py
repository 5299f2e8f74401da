"""Becoming the edge's own user, once everything is imported and listened on that it may not be able to reach."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 2, 38
_MOST_FILES = 65_536


def lower(*, uid: int | None, gid: int | None) -> None:
    """Keep nothing that answering does not take; None stays who we are. Exits if the kernel refuses."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernel = ctypes.CDLL(None, use_errno=True)
    # A change of uid makes the kernel forget with whom we are to end; whoever started us has chosen that.
    chosen = ctypes.c_int()
    kernel.prctl(_PR_GET_PDEATHSIG, ctypes.byref(chosen), 0, 0, 0)
    if uid is not None and gid is not None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        kernel.prctl(_PR_SET_PDEATHSIG, chosen.value, 0, 0, 0)
    if kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.exit("the kernel does not know no_new_privs")
