"""Where a training runs: on which device, and as one of how many processes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def pick_device(name: str | None = None, cpu_only: bool = False) -> torch.device:
    """The named device, or the best one that this machine has.

    Among the processes of torchrun each takes a GPU of its own, or all take the CPU where there are
    too few. Raises ValueError for a device that cannot be used.
    """
    if cpu_only:
        return torch.device("cpu")
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    own = int(os.environ.get("LOCAL_RANK", 0))
    if "LOCAL_WORLD_SIZE" in os.environ and not name:
        enough = best.type == "cuda" and int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
        return torch.device("cuda", own) if enough else torch.device("cpu")
    try:
        device = torch.device(name or best)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", own)
        torch.empty(1, device=device)
    except Exception as error:  # each backend raises its own type
        raise ValueError(f"the device {name or best} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started; without torchrun, do nothing."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes: (0, 1) where one trains alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank_and_world()[0] == 0


def from_first_process(compute: Callable[[], Result]) -> Result:
    """Call `compute` in the first process only, and return or raise its outcome in all of them."""
    if rank_and_world()[1] == 1:
        return compute()
    outcome: list[Result | Exception | None] = [None]
    if is_first():
        try:
            outcome = [compute()]
        except Exception as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]  # None only where `compute` returned it
