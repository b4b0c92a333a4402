"""Threads that share out the tasks of one run, and the flag that stops them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Threads"]

_PAUSE = 1e-3  # seconds

_Result = TypeVar("_Result")


class Threads:
    """Some threads, within a ``with`` block: its end stops what still runs, and waits for it.

    Also with one thread: the calling thread stays free to take Ctrl-C.

    Parameters
    ----------
    n : int
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._pool = ThreadPoolExecutor(n, thread_name_prefix="widelimit")
        self.cancel: NDArray[np.int32] = np.zeros(1, np.int32)
        """Not 0: stop. What a backend looks at between two slices."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel[0] = 1
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Iterable[Callable[[], _Result] | None]) -> Iterator[_Result]:
        """Run tasks, two for each thread in flight; yield what each returns, as they finish.

        None for a task: none can be begun before another one has ended.
        """
        pending: set[Future[_Result]] = set()
        for task in tasks:
            if task is not None:
                pending.add(self._pool.submit(task))
            elif not pending:
                time.sleep(_PAUSE)  # what has finished is being let go of
            patience, most = (_PAUSE, 0) if task is None else (0.1, 2 * self._n - 1)
            while len(pending) > most:
                finished, pending = wait(pending, patience, FIRST_COMPLETED)
                yield from (future.result() for future in finished)
                if task is None:
                    break
        while pending:
            finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
