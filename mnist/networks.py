"""The networks, and rewriting one into an equivalent form: batch norm added or folded, pooling before ReLU."""

import copy
from collections import OrderedDict
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


# what DigitDetector's maps mean; lengths are in pixels
CELL = 4  # its maps have a cell for each 4 × 4 pixels
SMALLEST, LARGEST = 20.0, 44.0  # the longer side of the digits that it finds
REFERENCE = 32.0  # the unit of the votes; sizes are logarithms of their ratio to it
NONE = 10  # its reader's class for what is no digit
EVIDENCE = 6  # numbers from which the probability of a digit comes: see `mnist.detect.evidence`
LINE_EVIDENCE = 5  # numbers from which the confidence of a whole number comes: see `mnist.lines.read_line`


class DigitDetector(nn.Module):
    """Finds handwritten digits of 20 to 44 pixels, reads each one found, and whole lines; 470,459 parameters.

    `forward` finds: grey levels (N, 1, H, W) from 0 to 1 → four maps. H and W are multiples of 8. The
    first three maps have a cell for each 4 × 4 pixels: (N, 1, h, w) is the logit of a digit's centre
    being here (as in Zhou, Wang & Krähenbühl 2019, Objects as Points); (N, 2, h, w) are the logarithms
    of its width and height, in units of 32 pixels; (N, 2, h, w) is where ink here has its digit's
    centre, across and down from here, in the same units. The last is (N, 1, H, W): the logit of each
    pixel being ink.

    `reader` reads: crops (K, 3, 32, 32) of a digit with a margin → logits (K, 11), of the ten digits
    and of no digit. A crop's channels are local contrast, ink, and how much the ink votes for this digit.

    `line` reads: strips (K, 1, 32, W) of local contrast, along which digits are 20 pixels high → logits
    (K, 11, 1, W / 2), at every second pixel, of the ten digits and of none; see `mnist.lines`.

    `there` and `sure` are logistic regressions (Platt 1999), each its factors and its constant: `there`
    turns what is known of a digit into the probability that it is one, and `sure` what is known of a
    number into the probability that all of it is right.
    """

    there: Tensor
    sure: Tensor

    def __init__(self, batch_norm: bool = False) -> None:
        """With `batch_norm` there is one before each ReLU, to train with; `folded` takes them out again."""
        super().__init__()

        def convolution(inputs: int, outputs: int, *, kernel: int | tuple[int, int] = 3,
                        stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 1,
                        dilation: int | tuple[int, int] = 1) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            return [nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=not batch_norm), *norm,
                    nn.ReLU(inplace=True)]

        self.fine = nn.Sequential(*convolution(1, 16, stride=2), *convolution(16, 32, stride=2), *convolution(32, 32))
        self.coarse = nn.Sequential(*convolution(32, 64, stride=2), *convolution(64, 64), *convolution(64, 64),
                                    *convolution(64, 64, padding=2, dilation=2),
                                    *convolution(64, 64, padding=4, dilation=4))
        self.reduce = nn.Conv2d(64, 32, 1)
        self.mix = nn.Sequential(*convolution(64, 64))
        self.heads = nn.Conv2d(64, 1 + 2 + 2 + 16, 1)
        self.reader = nn.Sequential(*convolution(3, 16), *convolution(16, 16), nn.MaxPool2d(2),
                                    *convolution(16, 32), *convolution(32, 32), nn.MaxPool2d(2),
                                    *convolution(32, 96), *convolution(96, 96), nn.MaxPool2d(2), nn.Flatten(),
                                    nn.Linear(96 * 4 * 4, 11))
        self.line = nn.Sequential(*convolution(1, 24), *convolution(24, 32, stride=2), *convolution(32, 32),
                                  *convolution(32, 48, stride=(2, 1)), *convolution(48, 48),
                                  *convolution(48, 48, stride=(2, 1)), *convolution(48, 64, kernel=(4, 1), padding=0),
                                  *convolution(64, 64, kernel=(1, 5), padding=(0, 4), dilation=(1, 2)),
                                  nn.Conv2d(64, 11, 1))
        self.register_buffer("there", torch.tensor([1.0, 1.0, *[0.0] * (EVIDENCE - 1)]))
        self.register_buffer("sure", torch.tensor([1.0, *[0.0] * LINE_EVIDENCE]))
        bias = cast(Tensor, self.heads.bias)
        with torch.no_grad():
            bias[:1] = -4.0  # few cells are centres, and at first none is expected

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fine = self.fine(local_contrast(grey))
        coarse = F.interpolate(self.reduce(self.coarse(fine)), scale_factor=2.0, mode="bilinear", align_corners=False)
        centres, sizes, votes, strokes = self.heads(self.mix(torch.cat([fine, coarse], 1))).split([1, 2, 2, 16], 1)
        return centres, sizes, votes, F.pixel_shuffle(strokes, 4)


    def folded(self) -> "DigitDetector":
        """A detector without batch norm that computes the same as this one does in evaluation mode."""
        plain, normed = DigitDetector(), copy.deepcopy(self).eval()
        with torch.no_grad():
            for name, own in plain.named_children():
                if isinstance(own, nn.Sequential):
                    fold_batch_norm(getattr(normed, name), own)
                else:
                    own.load_state_dict(getattr(normed, name).state_dict())
            for name, buffer in plain.named_buffers():
                buffer.copy_(getattr(normed, name))
        return plain.eval()


DETECTORS: dict[str, type[nn.Module]] = {DigitDetector.__name__: DigitDetector}


def local_contrast(grey: Tensor) -> Tensor:
    """How far each pixel is from the mean nearby, relative to the deviation nearby; (N, 1, H, W), multiples of 8."""
    def nearby(values: Tensor) -> Tensor:
        means = F.avg_pool2d(values, 8)
        means = F.avg_pool2d(F.pad(means, (3, 3, 3, 3), mode="replicate"), 7, 1)
        return F.interpolate(means, scale_factor=8.0, mode="bilinear", align_corners=False)

    mean = nearby(grey)
    deviation = (nearby(grey * grey) - mean * mean).clamp_min(0).sqrt()
    return (grey - mean) / (deviation + 0.05)


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

    `normed` must have the layers of `model`, and may have batch norm after convolutions and linear layers.
    """
    layers = list(normed.eval())
    with torch.no_grad():
        for own in model:
            layer = layers.pop(0)
            if layers and isinstance(layers[0], nn.BatchNorm2d):
                layer = fuse_conv_bn_eval(cast(nn.Conv2d, layer), cast(nn.BatchNorm2d, layers.pop(0)))
            elif layers and isinstance(layers[0], nn.BatchNorm1d):
                layer = fuse_linear_bn_eval(cast(nn.Linear, layer), cast(nn.BatchNorm1d, layers.pop(0)))
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
