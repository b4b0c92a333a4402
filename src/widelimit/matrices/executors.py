"""What tiles are handed out to: an executor of `concurrent.futures`, or a dask client."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

__all__ = ["DaskExecutor", "as_executor"]

_GRACE = 5.0  # seconds in which a connection that was lost may be made again


class DaskExecutor(Executor):
    """The executor of a dask client, which says so when the scheduler is gone."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._address = getattr(client.scheduler, "address", "an unknown address")
        self._lost: float | None = None
        self.check()
        self._executor: Executor = client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a call out."""
        self.check()
        return self._executor.submit(fn, *args, **kwargs)

    def check(self) -> None:
        """Raise ConnectionError if the scheduler is gone, and has been for seconds."""
        status = self._client.status
        if status == "running":
            self._lost = None
            return
        now = time.monotonic()
        self._lost = now if self._lost is None else self._lost
        if status == "connecting" and now - self._lost <= _GRACE:
            return
        raise ConnectionError(
            f"the dask scheduler at {self._address} is gone (its client is {status}): start it "
            "again, connect a new client, and run the same call again; the finished tiles are kept"
        )


def as_executor(executor: Any) -> Executor | None:
    """Return an executor of concurrent.futures as it is, and one for a dask client.

    Raises
    ------
    TypeError
        If it is neither, nor None.
    ConnectionError
        If the scheduler of the client is gone.
    """
    if executor is None or isinstance(executor, Executor):
        return executor
    if type(executor).__module__.partition(".")[0] == "distributed":
        return DaskExecutor(executor)
    raise TypeError(
        "executor must be a concurrent.futures.Executor, a dask.distributed.Client or None, got "
        f"{executor!r}"
    )
