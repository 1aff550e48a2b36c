"""How far an image is from those that a network was trained on, as far as its features tell: fitted here, computed in
the graph as the output `distance`.

The measure is that of taught heads (`service.heads.head.distances`): features at length one, compared with centres,
with the directions left out in which images of one centre differ most. A head has one centre for each class; here,
where images are many, k-means finds several. And features that are shorter than usual count like such that are longer:
what a network knows nothing of often moves it little. What else was weighed is in docs/abstention.md.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from numpy.typing import NDArray
from torch import Tensor, nn

from export.architectures.base import Network
from export.data import Dataset
from export.data.base import SPLIT_SEED
from export.evaluate import logits_of
from service.heads.familiarity import Familiarity, axes_for, fit_familiarity
from service.heads.head import TINY
from service.spec import ImageSpec

IMAGES = 4000  # training images to look at; of drawings fewer, in all their guises
CENTRES = 256  # of all classes together, if every class has one
MOST = 16  # centres of a class
FEWEST = 8  # images of a centre, on average

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Distance(nn.Module):
    """Features `[N, D]` to distances `[N, 1]`.

    Args:
        found: For features that are averaged over their places.
        length: Of such features, on average.
        side: How many values of each map are averaged; they lie side by side.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, found: Familiarity, length: float, side: int) -> None:
        super().__init__()
        self.centres, self.length, self.side = len(found.centres), length, side
        # One product for both. Features at length one have a squared length of one.
        weight = np.concatenate([-2 * found.centres, found.axes])
        bias = np.concatenate([1 + found.offsets, np.zeros(len(found.axes), np.float32)])
        self.register_buffer("weight", torch.from_numpy(weight), persistent=False)
        self.register_buffer("bias", torch.from_numpy(bias), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        points = averaged(features, self.side)
        lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True).clamp_min(TINY)
        products = F.linear(points / lengths, self.weight, self.bias)
        along = products[:, self.centres :]
        nearest = products[:, : self.centres].amin(dim=1, keepdim=True) - (along * along).sum(dim=1, keepdim=True)
        return nearest * torch.maximum(lengths / self.length, self.length / lengths)


def averaged(features: Tensor, side: int) -> Tensor:
    """Features `[N, A * side]` as means, `[N, A]`: where something is says little of strangers, and takes much room."""
    return torch.unflatten(features, 1, (-1, side)).mean(dim=2) if side > 1 else features


def places(features: Floats, maps: Floats) -> tuple[int, int] | None:
    """The grid over which features `[N, D]` are means of maps `[N, A, h, w]`; None if they are something else."""
    images, count, height, width = maps.shape
    for side in range(1, min(height, width) + 1):
        if height % side or width % side or features.shape[1] != count * side * side:
            continue
        means = maps.reshape(images, count, side, height // side, side, width // side).mean(axis=(3, 5))
        if np.allclose(features, means.reshape(images, -1), atol=1e-5):
            return side, side
    return None


def fit(network: Network, dataset: Dataset, image: ImageSpec, grid: tuple[int, int] | None) -> Distance:
    """Learn what a data set's training images are like to a network.

    Args:
        network: In evaluation mode.
        dataset: The images.
        image: The network's image contract.
        grid: Of places, over which its features are means of its maps; None if they are something else.
    """
    from threadpoolctl import threadpool_limits

    pixels, labels = training_images(dataset, image)
    side = grid[0] * grid[1] if grid else 1
    features = logits_of(nn.Sequential(network.trunk, network.head[: network.features_at], nn.Flatten()), pixels, image)
    points = averaged(torch.from_numpy(features), side).numpy()
    lengths = np.maximum(np.linalg.norm(points, axis=1, keepdims=True), TINY)
    with threadpool_limits(torch.get_num_threads()):
        groups = groups_of(points / lengths, labels)
        dimensions = points.shape[1]
        found = fit_familiarity(points, groups, dimensions, axes_for(groups, dimensions))
    return Distance(found, float(lengths.mean()), side)


def training_images(dataset: Dataset, image: ImageSpec) -> tuple[NDArray[np.uint8], Ints]:
    """Training images as the service would see them, in every guise of drawings, and their classes."""
    train = dataset.split.train
    if dataset.drawn:
        train = dataset.sample(train)
        rendered = dataset.rendered(train, image)
        return np.concatenate(list(rendered.values())), np.tile(dataset.labels[train], len(rendered))
    train = np.sort(np.random.default_rng(SPLIT_SEED).permutation(train)[:IMAGES])
    return dataset.pixels(train, image), dataset.labels[train]


def groups_of(units: Floats, labels: Ints) -> Ints:
    """Divide every class into groups of images that are alike.

    Args:
        units: Features at length one, `[N, D]`.
        labels: Classes, `[N]`.

    Returns:
        `[N]`, from 0 with none left out.
    """
    from sklearn.cluster import KMeans  # a second to import, and only this needs it

    classes = np.unique(labels)
    wanted = int(np.clip(CENTRES // len(classes), 1, MOST))
    groups = np.zeros(len(labels), np.int64)
    for label in classes:
        inside = labels == label
        count = min(wanted, max(1, int(inside.sum()) // FEWEST))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where images are alike, fewer groups are found
            found = KMeans(count, n_init=1, random_state=0).fit_predict(units[inside])
        groups[inside] = label * wanted + found
    return np.unique(groups, return_inverse=True)[1]
