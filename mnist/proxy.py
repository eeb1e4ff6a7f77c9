"""Selection via proxy (Coleman et al. 2020): a much cheaper network says which images are worth training on.

It takes the hardest ones, and with them all whose label is wrong. So it suits data with clean labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_utils import CLASSES

HIDDEN, BATCH_SIZE, LEARNING_RATE = 64, 500, 6e-3


def proxy_losses(images: Tensor, labels: Tensor) -> Tensor:
    """Each image's cross-entropy (N,) in a cheap network that has trained on all images once.

    It is a multilayer perceptron that sees every second pixel of every second row. An image costs it 13,000
    multiplications, where MNIST_CNN takes 480,000: 55,000 images take a sixth of a second on two cores.

    `images` (N, 28, 28) are uint8, and `labels` (N,) int64 or their probabilities (N, 10).
    """
    pixels = images[:, ::2, ::2].flatten(1).float() / 128 - 0.3
    model = nn.Sequential(nn.Linear(pixels.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=images.device.type != "mps")
    for index in torch.randperm(len(pixels)).to(images.device).split(BATCH_SIZE):
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[index]), labels[index]).backward()
        optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(model(pixels), labels, reduction="none")
