"""The networks, and rewriting one into an equivalent form: batch norm added or folded, pooling before ReLU."""

from collections import OrderedDict
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


class MNIST_CNN(nn.Sequential):
    """Two convolutions and two linear layers: images (N, 1, 28, 28) → logits (N, 10).

    21,840 parameters: 260 + 5,020 + 16,050 + 510. Softmax turns the ten logits into probabilities.
    """

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 10, kernel_size=5),   # (N, 10, 24, 24)
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),                   # (N, 10, 12, 12)
            conv2=nn.Conv2d(10, 20, kernel_size=5),  # (N, 20, 8, 8)
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),                   # (N, 20, 4, 4)
            flatten=nn.Flatten(),                    # (N, 320)
            fc1=nn.Linear(320, 50),                  # (N, 50)
            fc2=nn.Linear(50, 10),                   # (N, 10)
        ))


class MNIST_CNN_Dropout(nn.Sequential):
    """MNIST_CNN with dropout after conv2 and fc1, and a ReLU between the linear layers; 21,840 parameters.

    This is the network of PyTorch's first MNIST example.
    """

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 10, kernel_size=5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(10, 20, kernel_size=5),
            drop1=nn.Dropout2d(),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(320, 50),
            relu3=nn.ReLU(),
            drop2=nn.Dropout(),
            fc2=nn.Linear(50, 10),
        ))


class ThreeConv(nn.Sequential):
    """Three convolutions without pooling, and one linear layer with most of the 365,514 parameters."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 32, kernel_size=3),   # (N, 32, 26, 26)
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, kernel_size=3),  # (N, 64, 24, 24)
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 64, kernel_size=3),  # (N, 64, 22, 22)
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),                    # (N, 30976)
            fc=nn.Linear(30_976, 10),
        ))


class MNISTNet(nn.Sequential):
    """Two padded convolutions, each followed by pooling, and a wide linear layer; 421,642 parameters."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            conv1=nn.Conv2d(1, 32, kernel_size=3, padding=1),   # (N, 32, 28, 28)
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),                              # (N, 32, 14, 14)
            conv2=nn.Conv2d(32, 64, kernel_size=3, padding=1),  # (N, 64, 14, 14)
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),                              # (N, 64, 7, 7)
            flatten=nn.Flatten(),                               # (N, 3136)
            fc1=nn.Linear(3136, 128),
            relu3=nn.ReLU(),
            drop=nn.Dropout(),
            fc2=nn.Linear(128, 10),
        ))


class SixConv(nn.Sequential):
    """Six narrow convolutions with batch norm, then global average pooling; 18,482 parameters.

    Max pooling halves the image after the second and after the fourth convolution.
    """

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 1
        for number, width in enumerate((8, 8, 16, 16, 32, 32), 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            if number in (2, 4):
                layers[f"pool{number}"] = nn.MaxPool2d(2)  # to 14 x 14, to 7 x 7
            channels = width
        layers["mean"] = nn.AdaptiveAvgPool2d(1)           # (N, 32, 1, 1)
        layers["flatten"] = nn.Flatten()                   # (N, 32)
        layers["fc"] = nn.Linear(32, 10)
        super().__init__(layers)


NETWORKS: dict[str, type[nn.Sequential]] = {network.__name__: network for network in (
    MNIST_CNN, MNIST_CNN_Dropout, ThreeConv, MNISTNet, SixConv)}


def with_batch_norm(model: nn.Sequential) -> nn.Sequential:
    """The same layers, with batch norm (Ioffe & Szegedy 2015) after each convolution and linear layer but the last."""
    layers: list[nn.Module] = []
    for layer in model:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(*layers[:-1])


def fold_batch_norm(normed: nn.Sequential, model: nn.Sequential) -> None:
    """Set the weights of `model` so that it computes what `normed` computes in evaluation mode.

    `normed` must have the layers of `with_batch_norm(model)`.
    """
    layers = iter(normed.eval())
    with torch.no_grad():
        for own in model:
            layer = next(layers)
            if isinstance(layer, nn.Conv2d):
                layer = fuse_conv_bn_eval(layer, cast(nn.BatchNorm2d, next(layers)))
            elif isinstance(layer, nn.Linear) and own is not model[-1]:
                layer = fuse_linear_bn_eval(layer, cast(nn.BatchNorm1d, next(layers)))
            own.load_state_dict(layer.state_dict())


def pool_first(model: nn.Module) -> nn.Module:
    """The same layers, with each max pooling moved before the ReLU that precedes it.

    Values and gradients stay exactly the same, and ReLU has a quarter of the work. A model that is
    no nn.Sequential is returned unchanged.
    """
    if not isinstance(model, nn.Sequential):
        return model
    layers = list(model)
    for index, (layer, following) in enumerate(pairwise(layers)):
        if isinstance(layer, nn.ReLU) and isinstance(following, nn.MaxPool2d):
            layers[index:index + 2] = following, layer
    return nn.Sequential(*layers)
