"""A linear classifier on the features of a pretrained network, in closed form as far as that goes.

Multinomial logistic regression with a quadratic penalty, fitted on the features of the training images as they are
served. Its strength is chosen by cross-validation among the training images; where a class has too few for that, it is
a middling one. Features are centred and divided by their mean length; that is undone in the weights, so the network
keeps its form. Each by its own deviation would be the usual way, and is worse with one image of each class: a deviation
of ten numbers is mostly noise (docs/decisions.md).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from export.architectures.base import Network
from export.data import Dataset
from export.data.base import SAMPLE
from export.errors import StrategyError
from export.evaluate import logits_of
from service.heads.regression import STRENGTHS, USUAL, Examples, deal, fit_path
from service.spec import ImageSpec

FEWEST = 3  # images of each class for cross-validation
SIDES = (96,)  # to which drawings are enlarged besides

Ints = NDArray[np.int64]


def fit(network: Network, dataset: Dataset, image: ImageSpec) -> str:
    """Replace the classifier of a network by one fitted on the training images.

    Args:
        network: The last layer of its head must be fully connected, and come right after the features.
        dataset: Whose training images are used.
        image: The image contract.

    Returns:
        How the strength was chosen, for people.

    Raises:
        StrategyError: The head is another one.
    """
    rest = [
        layer for layer in list(network.head)[network.features_at :] if not isinstance(layer, nn.Dropout | nn.Identity)
    ]
    if len(rest) != 1 or not isinstance(rest[0], nn.Linear):
        raise StrategyError("its features do not go straight into one fully connected layer: use --strategy last")
    few = len(dataset.split.train) <= SAMPLE
    images = dataset.rendered(dataset.split.train, image, SIDES if few else ())
    features = logits_of(_Features(network), np.concatenate(list(images.values())), image)
    present, labels = np.unique(np.tile(dataset.labels[dataset.split.train], len(images)), return_inverse=True)
    groups = np.tile(np.arange(len(dataset.split.train)), len(images))
    with threadpool_limits(torch.get_num_threads()):  # more only get into each other's way, tenfold on a busy machine
        examples = Examples.of(features)
        strength, how = _strength(examples, labels, groups)
        (found,) = fit_path(examples.points, labels, [strength], balanced=False)
    with torch.no_grad():
        for parameter in rest[0].parameters():
            parameter.zero_()
        rest[0].weight[present] = torch.from_numpy(examples.spread(found.weights) / examples.scale)
        rest[0].bias[present] = torch.from_numpy(found.bias)
    return how


class _Features(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features(images)


def _strength(examples: Examples, labels: Ints, groups: Ints) -> tuple[float, str]:
    """What cross-validation likes most, of equals the strongest penalty; guises of an image stay together."""
    _, first = np.unique(groups, return_index=True)
    if np.bincount(labels[first]).min() < FEWEST:
        return USUAL, f"strength {USUAL:g}, too few images to choose by"
    folds = deal(labels, groups)
    right = dict.fromkeys(STRENGTHS, 0)
    for fold in np.unique(folds):
        inside = folds == fold
        for strength, found in zip(
            STRENGTHS, fit_path(examples.points[~inside], labels[~inside], STRENGTHS, balanced=False), strict=True
        ):
            given = found.logits(examples.points[inside]).argmax(axis=1)
            right[strength] += int((given == labels[inside]).sum())
    best = max(STRENGTHS, key=lambda strength: (right[strength], -strength))
    return best, f"strength {best:g} by cross-validation in {len(np.unique(folds))} parts"
