"""Who makes the call that is being served, as an audit log says it."""

from __future__ import annotations

from cellmesh.mesh import identity
from cellmesh.service.store import Who

NOBODY = Who(role="nobody", name="nobody")
"""A caller that could not be identified."""


def calling() -> Who | None:
    """Return who makes the call that is being served, or None outside of one: `who` of a store."""
    caller = identity.caller()
    return None if caller is None else who_is(caller)


def who_is(caller: identity.Caller) -> Who:
    """Return a caller as an audit log says it."""
    user_id = "" if caller.user is None else caller.user.user_id
    return Who(role=caller.role.name.lower(), name=caller.name, user_id=user_id)
