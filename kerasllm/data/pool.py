"""Work in several processes, in order and with bounded memory."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from kerasllm.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Cores this process may use, which in a container is often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def map_in_order(function: Callable[[T], R], items: Iterable[T], *, workers: int) -> Iterator[R]:
    """`map(function, items)` over several processes: same results, same order.

    Processes are spawned, never forked: a fork of a process that has TensorFlow's threads can hang. They import the
    module of `function` and not the main script, so scripts need no `if __name__ == "__main__"`, and what the script
    imports (TensorFlow) costs nothing. At most two items per worker are held.

    Args:
        function: A function at the top of a module.
        items: Read only as fast as results are taken.
        workers: Number of processes; with 1, or inside a daemonic process, everything happens here.

    Raises:
        InputError: A worker was killed, usually for want of memory.
    """
    if workers <= 1 or multiprocessing.current_process().daemon:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, mp_context=_Context(), initializer=_start_worker)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {workers} worker processes was killed, perhaps out of memory; use fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Spawned processes run the file of `sys.modules["__main__"]` again; show them an empty module instead."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 (multiprocessing's name for it)
        with _without_main_script():
            return SpawnProcess._Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process
