"""The networks: their sizes, and batch norm folded into them."""

import pytest
import torch
from torch import nn
from torchinfo import summary

from mnist.networks import MNIST_CNN, NETWORKS, fold_batch_norm, pool_first, with_batch_norm


def test_the_network_is_the_one_that_was_asked_for():
    layers = [str(layer) for layer in MNIST_CNN()]
    assert layers == [str(layer) for layer in (
        nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(320, 50), nn.Linear(50, 10))]
    assert sum(parameter.numel() for parameter in MNIST_CNN().parameters()) == 21_840


def test_torchinfo_counts_as_stated():
    info = summary(MNIST_CNN(), input_size=(64, 1, 28, 28), device="cpu", verbose=0)
    assert [layer.num_params for layer in info.summary_list if layer.num_params and layer.is_leaf_layer] == [
        260, 5_020, 16_050, 510]
    assert info.total_params == info.trainable_params == 21_840
    table = str(info)
    for line in ("31.21", "Input size (MB): 0.20", "Forward/backward pass size (MB): 3.64", "Params size (MB): 0.09",
                 "Estimated Total Size (MB): 3.92"):
        assert line in table


@pytest.mark.parametrize("name, parameters, mult_adds", [
    ("MNIST_CNN", 21_840, 487_600), ("MNIST_CNN_Dropout", 21_840, 487_600), ("ThreeConv", 365_514, 28_864_576),
    ("MNISTNet", 421_642, 4_241_472), ("SixConv", 18_482, None)])
def test_every_network_has_its_size(name, parameters, mult_adds):
    model = NETWORKS[name]()
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    info = summary(model, input_size=(1, 1, 28, 28), device="cpu", verbose=0)
    assert info.summary_list[-1].output_size == [1, 10]
    assert mult_adds is None or abs(info.total_mult_adds - mult_adds) < 0.02 * mult_adds


@pytest.mark.parametrize("name", ["MNIST_CNN", "MNISTNet"])
def test_batch_norm_folds_into_the_same_network(name):
    torch.manual_seed(0)
    normed, folded = with_batch_norm(NETWORKS[name]()), NETWORKS[name]()
    optimizer = torch.optim.SGD(normed.parameters(), 0.1)
    for _ in range(5):
        normed(2 + 3 * torch.randn(32, 1, 28, 28)).square().mean().backward()
        optimizer.step()
    fold_batch_norm(normed, folded)
    images = 2 + 3 * torch.randn(16, 1, 28, 28)
    assert sum(weight.numel() for weight in folded.parameters()) < sum(weight.numel() for weight in normed.parameters())
    torch.testing.assert_close(folded.eval()(images), normed.eval()(images), rtol=1e-4, atol=1e-5)


def test_pooling_before_relu_changes_neither_values_nor_gradients():
    torch.manual_seed(0)
    model, images = MNIST_CNN(), torch.randn(16, 1, 28, 28)
    outcomes = []
    for network in (model, pool_first(model)):
        model.zero_grad()
        logits = network(images)
        logits.square().sum().backward()
        outcomes.append([logits, *(weight.grad for weight in model.parameters())])
    assert isinstance(pool_first(model)[1], nn.MaxPool2d)
    for before, after in zip(*outcomes, strict=True):
        torch.testing.assert_close(after, before)
