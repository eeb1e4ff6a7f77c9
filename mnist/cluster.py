"""Dask's workers for the study: processes of this machine, or those of a cluster that stands already.

    with connected(processes=4) as client:
        futures = [submit(client, train_one, seed) for seed in range(5)]

A worker runs one task at a time, with one thread, so that all of them come to the same numbers. What a long
task has done so far travels in a `Progress`: where its worker dies, another worker takes it up from there.
"""

import contextlib
import logging
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import torch
from distributed import Client, Future, LocalCluster, Variable, Worker, WorkerPlugin, get_worker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.utils import silence_logging_cmgr
from threadpoolctl import threadpool_limits

PATIENCE = 10  # seconds to wait for the scheduler's answer


class _IgnoresCtrlC(WorkerPlugin):
    """Ctrl-C reaches all processes of a terminal: the study's own process ends its workers."""

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def connected(processes: int = 1, scheduler: str | None = None) -> Iterator[Client]:
    """A client of the scheduler at this address, or of one of its own with so many workers on this machine.

    Raises OSError where no scheduler answers, and CancelledError where it ends before the client does.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL))  # what fails raises an exception
        if scheduler is None:
            # no limit of memory: Dask would stop a worker for what it takes a training to hold its images
            cluster = LocalCluster(n_workers=processes, threads_per_worker=1, memory_limit=0, host="127.0.0.1",
                                   dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            client.register_plugin(_IgnoresCtrlC())
        else:
            client = stack.enter_context(Client(scheduler, timeout=PATIENCE))
        try:
            yield client
        except (CommClosedError, ClosedClientError) as error:
            raise CancelledError("the connection to the scheduler was lost") from error


def submit(client: Client, function: Callable[..., Any], *arguments: Any, worker: str | None = None) -> Future[Any]:
    """Let a worker, or the one with this address, call the function. Its result is never another call's."""
    return client.submit(_alone, function, *arguments, key=f"{function.__name__}-{uuid.uuid4().hex}",
                         workers=None if worker is None else [worker])


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with one thread. Raises ValueError on a worker that runs several tasks at once."""
    worker = get_worker()
    if worker.state.nthreads != 1:
        raise ValueError(f"the worker {worker.address} runs {worker.state.nthreads} tasks at once, which would mix "
                         "their random numbers: start it with --nthreads 1")
    torch.set_num_threads(1)
    with threadpool_limits(1):
        return function(*arguments)


class Progress:
    """How far a task has come: a count of steps, and the bytes from which it can go on. The scheduler holds them."""

    def __init__(self, client: Client, begun: bytes = b"") -> None:
        """`begun` is what an earlier attempt has left."""
        name = uuid.uuid4().hex
        self._steps, self._state = f"{name} steps", f"{name} state"
        Variable(self._state, client).set(begun)
        Variable(self._steps, client).set(0)

    def steps(self, client: Client) -> int:
        """The steps done. Raises OSError where the scheduler does not answer."""
        return Variable(self._steps, client).get(timeout=PATIENCE)

    def state(self, client: Client | None = None) -> bytes:
        """The last bytes, from the scheduler of the client or of this worker; see `steps`."""
        return Variable(self._state, client).get(timeout=PATIENCE)

    def write(self, steps: int, state: bytes) -> None:
        """Called by the task. Raises InterruptedError if nobody waits for the task any longer."""
        worker = get_worker()
        task = worker.state.tasks.get(worker.get_current_task())
        if task is None or task.state == "cancelled":
            raise InterruptedError("the study has ended")
        Variable(self._state).set(state)
        Variable(self._steps).set(steps)

    def forget(self, client: Client) -> None:
        """Free the scheduler's memory."""
        for name in (self._steps, self._state):
            Variable(name, client).delete()
