"""Out-of-distribution (OOD) detection: is there a single digit in the image at all?

The OOD score is a linear function of what the network itself computes: the features that enter its
first linear layer, and two measures of how strong its logits are. `mnist.calibrate` fits it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_utils import normalize


@torch.no_grad()
def features_and_logits(model: nn.Sequential, images: np.ndarray | Tensor, *, mean: float,
                        std: float) -> tuple[Tensor, Tensor]:
    """The features (N, F) that enter the first linear layer, and the logits (N, 10), of images (N, 28, 28).

    Images have grey levels 0 to 255; the results are on the CPU. The model must be in evaluation mode.
    """
    device, features, logits = next(model.parameters()).device, [], []
    for batch in torch.as_tensor(images).split(250):
        values = normalize(batch.to(device), mean, std)
        entering = None
        for layer in model:
            if entering is None and isinstance(layer, nn.Linear):
                entering = values
            values = layer(values)
        assert entering is not None, "every network of this project has a linear layer"
        features.append(entering.cpu())
        logits.append(values.cpu())
    return torch.cat(features), torch.cat(logits)


def logits_and_ood_scores(model: nn.Sequential, images: np.ndarray | Tensor,
                          metadata: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The logits (N, 10) and the OOD scores (N,), higher for what is no digit, of images (N, 28, 28).

    `metadata` are those of a calibrated weights file.
    """
    features, logits = features_and_logits(model, images, mean=metadata["mean"], std=metadata["std"])
    return logits, ood_inputs(features, logits) @ metadata["ood"]["weights"]


def ood_inputs(features: Tensor, logits: Tensor) -> Tensor:
    """What the OOD score is computed from (N, F + 2): features, log-sum-exp of the logits, highest logit."""
    return torch.cat([features, logits.logsumexp(1, keepdim=True), logits.amax(1, keepdim=True)], 1)
