"""Measure a network: accuracy, calibration, selective accuracy and saliency.

Probabilities (N, 10) and labels (N,) are NumPy arrays; confidence is the highest of the ten
probabilities.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist.networks import pool_first
from mnist_utils import normalize

# MNIST's test images whose label most people who looked at them reject
DISPUTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray | Tensor, *, mean: float, std: float,
            batch_size: int = 250) -> Tensor:
    """The network's logits (N, 10), on the CPU, for images (N, 28, 28) of grey levels 0 to 255.

    The model runs in evaluation mode and is then put back into the mode it was in. Batches of 250
    fit into a processor's cache; larger ones take twice as long on a CPU.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    network = pool_first(model)
    try:
        return torch.cat([network(normalize(batch.to(device), mean, std))
                          for batch in torch.as_tensor(images).split(batch_size)]).cpu()
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, images: np.ndarray | Tensor, labels: np.ndarray | Tensor, *,
             mean: float, std: float) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy from 0 to 1, over images (N, 28, 28) and labels (N,)."""
    logits, labels = predict(model, images, mean=mean, std=std), torch.as_tensor(labels).long()
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """Count, mean confidence and accuracy (bins, 3) of the predictions in bins of equal width in confidence.

    In an empty bin, confidence and accuracy are NaN.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        return np.stack([counts, *(np.bincount(bin_of, values, bins) / counts for values in (confidence, correct))], 1)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The mean gap between confidence and accuracy over the bins, weighted by count; 0 to 1 (Guo et al. 2017)."""
    counts, confidence, accuracy = reliability(probabilities, labels, bins).T
    return float(np.nansum(counts * np.abs(confidence - accuracy)) / counts.sum())


def selective_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The accuracy (N,) at a coverage of 1, 2, ... N predictions, the most confident first (El-Yaniv & Wiener 2010)."""
    correct = (probabilities.argmax(1) == labels)[np.argsort(-probabilities.max(1), kind="stable")]
    return correct.cumsum() / np.arange(1, len(correct) + 1)


def confidence_threshold(probabilities: np.ndarray, labels: np.ndarray, accuracy: float) -> float:
    """The lowest confidence at or above which the predictions reach `accuracy`; 1.1 if there is none."""
    enough = np.flatnonzero(selective_accuracy(probabilities, labels) >= accuracy)
    return float(np.sort(probabilities.max(1))[::-1][enough[-1]]) if len(enough) else 1.1


def saliency(model: nn.Module, image: np.ndarray, digit: int, *, mean: float, std: float) -> np.ndarray:
    """The absolute gradient (28, 28) of a digit's logit with respect to each pixel's ink (Simonyan et al. 2014).

    `image` is uint8 (28, 28). The model must be on the CPU and in evaluation mode. Ink runs from 0 to 1,
    so a value of 2 means: full ink instead of none would change the logit by about 2.
    """
    ink = (torch.from_numpy(image[None]).float() / 255).requires_grad_()
    gradient, = torch.autograd.grad(model(normalize(255 * ink, mean, std))[0, digit], ink)
    return gradient[0].abs().numpy()
