"""ZFNet: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2013 (arXiv:1311.2901), figure 3.

Kept from the paper: 96 first filters of 7×7 with stride 2 and 256 of 5×5 with stride 2, where AlexNet's first had
11×11 and stride 4; 3×3 pooling with stride 2 and contrast normalisation across maps after both; dense connections where
AlexNet had two halves; two hidden layers of 4,096 with dropout; initial weights of deviation 0.01 and biases of 0; maps
of 110×110, 26×26 and 13×13.

Changed: the paper does not spell the contrast normalisation out; AlexNet's local response normalisation stands for it.
While training, the paper rescales every filter of the first layers whose root mean square exceeds 0.1; that is not done
here. The mean colour of ImageNet is taken off, not the mean image. Padding and rounding are those that give the
figure's sizes.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from export.architectures.alexnet2012 import cut, dense, response_normalisation
from export.architectures.base import Architecture
from service.spec import ImageSpec


class ZFNet(nn.Module):
    """Float `[N, 3, 224, 224]` to logits `[N, labels]`."""

    def __init__(self, labels: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(3, 96, 7, stride=2, padding=1),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm1=response_normalisation(),
                conv2=nn.Conv2d(96, 256, 5, stride=2),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm2=response_normalisation(),
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 384, 3, padding=1),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(384, 256, 3, padding=1),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, stride=2),
            )
        )
        self.classifier = dense(256 * 6 * 6, labels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


ARCHITECTURES = (
    Architecture(
        name="zfnet",
        paper="Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013",
        year=2013,
        origin="fovea",
        image=ImageSpec(
            height=224,
            width=224,
            resize_to=256,
            mean=(0.485, 0.456, 0.406),
            std=(1 / 255, 1 / 255, 1 / 255),  # the network takes differences of pixel values as they are
        ),
        labels=1000,
        build=ZFNet,
        cut=cut,
    ),
)
