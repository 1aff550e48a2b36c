"""What a convolutional network has to beat: a linear classifier and one hidden layer, on the pixels themselves.

Both are baselines of LeCun, Bottou, Bengio and Haffner 1998, at the size that they had there: 28×28 pixels straight to
ten labels (12.0 % errors on MNIST's test images), and through 300 hidden units (4.7 %). Changed: softmax instead of
squared errors, rectified linear instead of sigmoid hidden units.

There are no feature maps but the image: it is what the activations are, and where class activation maps are drawn.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from export.architectures.base import Architecture, Network
from service.spec import ImageSpec

SIDE = 28  # pixels
HIDDEN = 300
PAPER = "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998"
IMAGE = ImageSpec(
    height=SIDE,
    width=SIDE,
    channels=1,
    resize="stretch",
    interpolation="bicubic",
    mean=(0.1307,),  # and std: of MNIST's training images
    std=(0.3081,),
)


def linear(labels: int) -> nn.Sequential:
    """Logistic regression: float `[N, 1, 28, 28]` to logits."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=nn.Linear(SIDE * SIDE, labels)))


def mlp(labels: int) -> nn.Sequential:
    """One hidden layer of rectified linear units: float `[N, 1, 28, 28]` to logits."""
    layers = OrderedDict(
        flatten=nn.Flatten(), hidden=nn.Linear(SIDE * SIDE, HIDDEN), relu=nn.ReLU(), output=nn.Linear(HIDDEN, labels)
    )
    return nn.Sequential(layers)


def cut(module: nn.Module) -> Network:
    """The image is the maps; the features are what the last layer is given."""
    head = nn.Sequential(OrderedDict(module.named_children()))
    return Network(nn.Identity(), head, features_at=len(head) - 1)


ARCHITECTURES = (
    Architecture(name="linear", paper=PAPER, year=1998, origin="fovea", image=IMAGE, labels=10, build=linear, cut=cut),
    Architecture(name="mlp", paper=PAPER, year=1998, origin="fovea", image=IMAGE, labels=10, build=mlp, cut=cut),
)
