"""Dask's workers for the study: processes of this machine, or those of a cluster that stands already.

    with connected(processes=4) as client:
        futures = [client.submit(train_one, seed, pure=False) for seed in range(5)]

A worker has one thread, so that all of them come to the same numbers. What a long task has done so far
travels in a `Progress`: where its worker dies, another worker takes it up from there.
"""

import contextlib
import logging
from collections.abc import Iterator

import torch
from distributed import Client, LocalCluster, Variable, Worker, WorkerPlugin, get_worker
from threadpoolctl import threadpool_limits

PATIENCE = 10  # seconds to find the scheduler


class _OneThread(WorkerPlugin):
    """Sets a worker up to compute with one thread, whenever it joins."""

    name = "one thread"

    def setup(self, worker: Worker) -> None:
        if worker.state.nthreads != 1:
            raise ValueError(f"the worker {worker.address} runs {worker.state.nthreads} tasks at once, which would "
                             "mix their random numbers: start it with --nthreads 1")
        torch.set_num_threads(1)
        threadpool_limits(1)


@contextlib.contextmanager
def connected(processes: int = 1, scheduler: str | None = None) -> Iterator[Client]:
    """A client of the scheduler at this address, or of one of its own with so many workers on this machine.

    Raises OSError where no scheduler answers, and ValueError where a worker has several threads.
    """
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            # no limit of memory: Dask would stop a worker for what it takes a training to hold its images
            cluster = LocalCluster(n_workers=processes, threads_per_worker=1, memory_limit=0, host="127.0.0.1",
                                   dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        else:
            client = stack.enter_context(Client(scheduler, timeout=PATIENCE))
        client.register_plugin(_OneThread())
        yield client


class Progress:
    """How far a task has come: a count of steps, and the bytes from which it can go on. The scheduler holds them."""

    def __init__(self, name: str, client: Client, begun: bytes = b"") -> None:
        """`name` is the task's own; `begun` is what an earlier attempt has left."""
        self._name = name
        Variable(name, client).set([0, begun])

    def read(self, client: Client | None = None) -> tuple[int, bytes]:
        """The steps done and the last bytes; of this worker's scheduler, unless a client is named."""
        steps, state = Variable(self._name, client).get()
        return steps, state

    def write(self, steps: int, state: bytes) -> None:
        """Called by the task. Raises InterruptedError if nobody waits for the task any longer."""
        worker = get_worker()
        task = worker.state.tasks.get(worker.get_current_task())
        if task is None or task.state == "cancelled":
            raise InterruptedError("the study has ended")
        Variable(self._name).set([steps, state])

    def forget(self, client: Client) -> None:
        """Free the scheduler's memory."""
        Variable(self._name, client).delete()
