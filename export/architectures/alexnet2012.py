"""AlexNet as published: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural
Networks, NIPS 2012. (torchvision's `alexnet` is the variant of 2014: 64 first filters, no groups, no normalisation.)

Kept from the paper: 96 first filters of 11×11 with stride 4, the halves of layers 2, 4 and 5 that ran on two GPUs and
see only their own half, local response normalisation (n = 5, k = 2, α = 1e-4, β = 0.75) after layers 1 and 2,
overlapping pooling (3×3, stride 2), dropout in the two hidden layers of 4,096, the initial weights and biases;
60,965,224 parameters.

Changed: the image is 227×227, as the arithmetic of its 55×55 first maps wants, where the text says 224×224; the mean
colour of ImageNet is taken off, not the mean image.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from export.architectures.base import Architecture, Network
from service.spec import ImageSpec


def response_normalisation() -> nn.LocalResponseNorm:
    """The paper's: over 5 neighbouring maps. PyTorch divides α by their number, the paper doesn't."""
    return nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)


def dense(inputs: int, labels: int) -> nn.Sequential:
    """The three fully connected layers, with dropout in the first two."""
    layers = OrderedDict[str, nn.Module](
        flatten=nn.Flatten(),
        fc6=nn.Linear(inputs, 4096),
        relu6=nn.ReLU(),
        drop6=nn.Dropout(0.5),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(),
        drop7=nn.Dropout(0.5),
        fc8=nn.Linear(4096, labels),
    )
    return nn.Sequential(layers)


class AlexNet2012(nn.Module):
    """Float `[N, 3, 227, 227]` to logits `[N, labels]`."""

    def __init__(self, labels: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(3, 96, 11, stride=4),
                relu1=nn.ReLU(inplace=True),
                norm1=response_normalisation(),
                pool1=nn.MaxPool2d(3, stride=2),
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
                relu2=nn.ReLU(inplace=True),
                norm2=response_normalisation(),
                pool2=nn.MaxPool2d(3, stride=2),
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, stride=2),
            )
        )
        self.classifier = dense(256 * 6 * 6, labels)
        ones = ("conv2", "conv4", "conv5", "fc6", "fc7")  # so that these rectifiers start with positive inputs
        for path, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, float(path.endswith(ones)))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def cut(module: nn.Module) -> Network:
    """The 256 pooled maps of 6×6, and the fully connected layers; the features are the second hidden layer."""
    head = nn.Sequential(OrderedDict(module.get_submodule("classifier").named_children()))
    return Network(module.get_submodule("features"), head, features_at=len(head) - 2)


ARCHITECTURES = (
    Architecture(
        name="alexnet2012",
        paper="Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012",
        year=2012,
        origin="fovea",
        image=ImageSpec(
            height=227,
            width=227,
            resize_to=256,
            mean=(0.485, 0.456, 0.406),
            std=(1 / 255, 1 / 255, 1 / 255),  # the network takes differences of pixel values as they are
        ),
        labels=1000,
        build=AlexNet2012,
        cut=cut,
    ),
)
