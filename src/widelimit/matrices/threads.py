"""Threads that share out the tasks of one run, and the flag that stops them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from widelimit.matrices.plan import IN_FLIGHT

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
        """Run tasks, `IN_FLIGHT` for each thread; yield what each returns, as they finish.

        None for a task: none can be begun before another one has ended.
        """
        # A queue costs a tenth of what `concurrent.futures.wait` takes for each task.
        ended: SimpleQueue[Future[_Result]] = SimpleQueue()
        under_way = 0
        for task in tasks:
            if task is not None:
                self._pool.submit(task).add_done_callback(ended.put)
                under_way += 1
            elif not under_way:
                time.sleep(_PAUSE)  # what has finished is being let go of
            patience, most = (_PAUSE, 0) if task is None else (None, IN_FLIGHT * self._n - 1)
            while under_way > most:
                try:
                    future = ended.get(timeout=patience)
                except Empty:
                    break
                under_way -= 1
                yield future.result()
                if task is None:
                    break
        for _ in range(under_way):
            yield ended.get().result()
