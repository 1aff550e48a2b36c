"""A linear classifier on the features of a pretrained network, in closed form as far as that goes.

Multinomial logistic regression with a quadratic penalty, fitted on the features of the training images as they are
served. Its strength is chosen by cross-validation among the training images; where a class has too few for that, it is
a middling one. Features are centred and divided by their mean length; that is undone in the weights, so the network
keeps its form. Each by its own deviation would be the usual way, and is worse with one image of each class: a deviation
of ten numbers is mostly noise (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any

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
from service.spec import ImageSpec

STRENGTHS = (1.0, 10.0, 100.0)  # C of scikit-learn: the inverse of the penalty's weight
USUAL = 10.0
FOLDS = 5
FEWEST = 3  # images of each class for cross-validation
ITERATIONS = 1000
SIDES = (96,)  # to which drawings are enlarged besides

Floats = NDArray[np.float32]


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
    labels = np.tile(dataset.labels[dataset.split.train], len(images))
    mean = features.mean(axis=0)
    scale = np.linalg.norm(features, axis=1).mean() + 1e-6
    groups = np.tile(np.arange(len(dataset.split.train)), len(images))
    with threadpool_limits(torch.get_num_threads()):  # more only get into each other's way, tenfold on a busy machine
        strength, how = _strength((features - mean) / scale, labels, groups)
        model = _regression(strength).fit((features - mean) / scale, labels)
    coefficients = np.zeros((len(dataset.label_names), features.shape[1]))
    intercepts = np.zeros(len(dataset.label_names))
    if len(model.classes_) == 2:  # scikit-learn then has one row, for the second
        coefficients[model.classes_] = np.stack([-model.coef_[0], model.coef_[0]]) / 2
        intercepts[model.classes_] = np.array([-model.intercept_[0], model.intercept_[0]]) / 2
    else:
        coefficients[model.classes_] = model.coef_
        intercepts[model.classes_] = model.intercept_
    weight = coefficients / scale
    with torch.no_grad():
        rest[0].weight.copy_(torch.from_numpy(weight))
        rest[0].bias.copy_(torch.from_numpy(intercepts - weight @ mean))
    return how


class _Features(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features(images)


def _strength(features: Floats, labels: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[float, str]:
    """What cross-validation likes most, of equals the strongest penalty; guises of an image stay together."""
    from sklearn.model_selection import StratifiedGroupKFold

    images, first = np.unique(groups, return_index=True)
    fewest = int(np.bincount(labels[first]).min(initial=len(images), where=np.bincount(labels[first]) > 0))
    if fewest < FEWEST:
        return USUAL, f"strength {USUAL:g}, too few images to choose by"
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=0)
    right = dict.fromkeys(STRENGTHS, 0)
    for train, held_out in folds.split(features, labels, groups):
        for strength in STRENGTHS:
            predicted = _regression(strength).fit(features[train], labels[train]).predict(features[held_out])
            right[strength] += int((predicted == labels[held_out]).sum())
    best = max(STRENGTHS, key=lambda strength: (right[strength], -strength))
    return best, f"strength {best:g} by cross-validation in {folds.get_n_splits()} parts"


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=ITERATIONS)
