"""Threads of one process, and processes of one training.

A result never depends on how many there are. Images are worked on one by one, each on one thread; what they give is
added in the order of the images, within a process and from one process to the next:

    rank 0 adds its images' gradients -> rank 1 adds its own, one by one -> ... -> the last tells all the sum

which is the order of one process with all images, to the last bit. (An all-reduce would add partial sums.)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from roadworthy.errors import InputError, RoadworthyError

_lock = threading.Lock()
_open: list[int] = []
"""How many threads there were before, then one entry for each `one_thread_each` that is open."""
T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, an operator of PyTorch uses the thread that calls it and no other; afterwards what was set before.

    Threads started inside take the setting over. Small feature maps are faster so, and sums have one order. Several may
    be open at a time and close in any order: the first sets, the last sets back.
    """
    with _lock:
        if not _open:
            _open.append(torch.get_num_threads())
            torch.set_num_threads(1)
        _open.append(1)
    try:
        yield
    finally:
        with _lock:
            _open.pop()
            if len(_open) == 1:
                torch.set_num_threads(_open.pop())


def ordered(pool: ThreadPoolExecutor, fn: Callable[[T], R], items: Iterable[T], ahead: int) -> Generator[R, None, None]:
    """`map(fn, items)` in the pool: results in order, at most `ahead` that nobody took yet.

    Items are drawn in the caller's thread. An exception appears where its result would have. Leaving early cancels
    what has not begun, and waits for what has.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(fn, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled():
                with contextlib.suppress(BaseException):
                    future.result()


class Network(Protocol):
    def __call__(self, x: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]: ...


def run_all(
    network: Network, inputs: Iterable[Tensor], workers: int = 1, taps: Sequence[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """What a network says to each input, in order and without gradients, on `workers` threads at once.

    At most `workers` results wait, so that memory does not grow with the number of inputs.
    """

    def one(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return network(x, taps)

    with one_thread_each(), ThreadPoolExecutor(workers, thread_name_prefix="run") as pool:
        yield from ordered(pool, one, inputs, workers + 1)


class World:
    """The processes that train together; one alone unless launched by torchrun (WORLD_SIZE is set then).

    rank: which of `size` this is; the first one writes and draws.   local: how many run on this machine.
    As a context it joins them: gloo between CPUs, nccl between GPUs (each process takes the GPU of its local rank).
    They stay joined until the process ends, as those of torchrun cannot part and meet again.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.local = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.size))) if self.size > 1 else 1
        self._kind = device
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("the device is 'cuda', but PyTorch finds no GPU here; use 'cpu'")
        index = int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0
        self.device = torch.device("cuda", index) if device == "cuda" else torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> World:
        if self.size > 1 and not dist.is_initialized():
            if self._kind == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self._kind == "cuda" else "gloo")
            atexit.register(_part)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to part from before the process ends."""

    def part(self, count: int) -> range:
        """Which of `count` things in a row are this process's: a run of neighbours, so that sums can go from rank to
        rank."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def everyone(self, value: T) -> list[T]:
        """What each process says, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agreed(self, work: Callable[[], R]) -> R:
        """The first process's result of `work`, which no other does; an error that explains itself is raised by all."""
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        error: BaseException | None = None
        if self.first:
            try:
                told = [(True, work())]
            except BaseException as caught:
                error, told = caught, [(False, _told(caught))]
        dist.broadcast_object_list(told, 0)
        if error is not None:
            raise error
        good, value = told[0]
        if not good:
            raise value
        return value

    def together(self, error: BaseException | None) -> None:
        """Raise where any process has an error: its own, or that of the lowest rank that has one."""
        found = self.everyone(None if error is None else _told(error))
        if error is not None:
            raise error
        for other in found:
            if other is not None:
                raise other

    def add_up(self, total: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The sum over all processes in order of ranks, the same bits on each.

        total: zeros, or at the first process its sum.   kept: what the others add, one by one.
        """
        if self.size == 1:
            return total
        if self.rank > 0:
            dist.recv(total, self.rank - 1)
        for one in kept:
            total.add_(one)
        if self.rank < self.size - 1:
            dist.send(total, self.rank + 1)
        dist.broadcast(total, self.size - 1)
        return total


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _told(error: BaseException) -> RoadworthyError:
    """What the other processes raise: the same sentence, of the same kind where it is one of ours."""
    if isinstance(error, RoadworthyError):
        return type(error)(*error.args)
    return RoadworthyError(f"another process of this training failed: {error}")
