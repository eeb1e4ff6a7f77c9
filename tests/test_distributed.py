"""What several processes compute together; tests/test_run_model.py starts them from the command line.

Each process imports this file, so it imports little.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mnist.networks import MNIST_CNN
from mnist.train import train
from mnist_utils import load_split

IMAGES, LABELS = load_split("test", Path(__file__).parents[1] / "dataset")


def first_gradient(rank: int, world: int, store: str, result: Path, count: int = 100) -> None:
    """What a process of several does: one step on one batch that does not divide by their number."""
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = MNIST_CNN()
    part = IMAGES[:count], LABELS[:count]
    list(train(model, part, part, mean=0.13, std=0.31, epochs=1, batch_size=100, learning_rate=1e-3, seed=0, amp=False))
    if rank == 0:
        torch.save(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), result)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)  # gloo's threads sometimes abort an interpreter's orderly end


@pytest.mark.parametrize("world, count", [(2, 100), (3, 100), (2, 101)])
def test_the_first_gradient_does_not_depend_on_the_process_count(world, count, tmp_path):
    """With 101 images and batches of 100, the second process has no share of the last batch."""
    first_gradient(0, 1, "", tmp_path / "alone", count)
    torch.multiprocessing.spawn(first_gradient, (world, tmp_path / "store", tmp_path / "shared", count), nprocs=world)
    alone, shared = torch.load(tmp_path / "alone"), torch.load(tmp_path / "shared")
    assert alone.abs().max() > 0.01
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-6)
