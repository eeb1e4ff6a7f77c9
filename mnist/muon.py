"""The optimizer Muon: orthogonalised updates for the weights of hidden layers, Adam for all other parameters."""

import torch
from torch import Tensor, nn

# of the polynomial ax + bx³ + cx⁵, which lifts small singular values fast (Jordan et al. 2024)
QUINTIC = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Adam):
    """Muon (Jordan et al. 2024): https://kellerjordan.github.io/posts/muon.

    The update of a weight matrix is its momentum, made nearly orthogonal, so all directions advance alike. Before each
    step the matrix is rescaled to the Frobenius norm √(rows), as in the training of airbench (Jordan 2024): so weights
    and update stay in proportion, and initial weights lose their own scale. The weight of a convolution counts as the
    matrix (out_channels, rest). The momentum is Adam's first beta.
    """

    def __init__(self, model: nn.Module, learning_rate: float, adam_learning_rate: float, *, fused: bool) -> None:
        """Muon trains all weights but the last layer's; Adam trains that one, the biases and the norms.

        `fused` is Adam's. There are two groups of parameters: first Adam's, then Muon's.
        """
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1][:-1]
        chosen = set(map(id, weights))
        others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        super().__init__([{"params": others, "lr": adam_learning_rate, "muon": False},
                          {"params": weights, "lr": learning_rate, "muon": True}], fused=fused)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            if group["muon"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._step(weight, weight.grad.flatten(1), group["lr"], group["betas"][0])
                        weight.grad = None  # so Adam leaves it alone
        super().step()

    def _step(self, weight: Tensor, gradient: Tensor, learning_rate: float, momentum: float) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(gradient))  # Adam's names
        state["step"] += 1
        average = state["exp_avg"].lerp_(gradient, 1 - momentum)
        weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))
        update = orthogonal(gradient.lerp(average, momentum))  # Nesterov's momentum
        weight.sub_(update.reshape(weight.shape), alpha=learning_rate)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (m, n) with singular values of about 1, and the singular vectors of `matrix`.

    A Newton-Schulz iteration of five steps brings all but tiny singular values between 0.65 and 1.25.
    """
    a, b, c = QUINTIC
    result = matrix / (matrix.norm() + 1e-7)
    if tall := len(matrix) > matrix.shape[1]:
        result = result.T
    for _ in range(steps):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.T if tall else result
