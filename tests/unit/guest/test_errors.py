"""The error of a task group's task comes out alone where a caller waits for one of its kind."""

import asyncio

import pytest

from cellmesh.guest.errors import GuestError, InvalidRequest, WrongEpoch, ungrouped


async def _raise(*errors: Exception) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async with asyncio.TaskGroup() as inner, asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fail(error))
    del inner


def test_one_error_comes_out_alone_however_deep() -> None:
    """Prove that neither one group nor two are left around the first error, on every Python we run on."""
    with pytest.raises(InvalidRequest, match="first"), ungrouped(GuestError):
        asyncio.run(_raise(InvalidRequest("first"), WrongEpoch("second")))


def test_an_error_of_another_kind_is_not_hidden() -> None:
    """Prove that a fault of ours beside a refusal, or without one, still comes out in its group."""
    with pytest.raises(BaseExceptionGroup), ungrouped(GuestError):
        asyncio.run(_raise(InvalidRequest("refused"), ZeroDivisionError("a fault")))
    with pytest.raises(BaseExceptionGroup), ungrouped(GuestError):
        asyncio.run(_raise(ZeroDivisionError("a fault")))
    with pytest.raises(ZeroDivisionError), ungrouped(GuestError):
        raise ZeroDivisionError("without a group")
