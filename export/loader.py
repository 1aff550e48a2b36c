"""Batches of training and held-out images, the same whatever the number of processes, whenever the training resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from export.data import Dataset
from export.data.base import renderings
from export.draws import Draws, seed_of
from service.preprocess import Preprocessor
from service.spec import ImageSpec

GUISES, AUGMENTATION = range(2)  # what is drawn for a batch
KEPT = 2**30  # bytes of decoded images that are kept; above that, each is decoded anew in processes of their own


@dataclass(frozen=True)
class Share:
    """What one process takes of a batch.

    Attributes:
        seed: Of all that is drawn for the batch.
        total: Images in the batch.
        rows: Int64 `[N]`, which of them are here.
        indices: Int64 `[N]`, their positions among the images of the loader.
    """

    seed: int
    total: int
    rows: NDArray[np.int64]
    indices: NDArray[np.int64]

    def draws(self, purpose: int, device: torch.device | str = "cpu") -> Draws:
        """Random numbers of these images, other ones for each purpose."""
        return Draws(seed_of(self.seed, purpose), self.total, torch.from_numpy(self.rows), device)


class Shares(Sampler[Share]):
    """A process's shares of the batches of an epoch.

    The order of the images is drawn from the seed and the epoch alone, and the images of a batch are dealt to the
    processes in turn, so that together they always take the same batches. A last batch with fewer images than
    processes is left out.

    Args:
        images: How many there are.
        batch_size: Of all processes together.
        seed: Of the run.
        rank: Of this process.
        world: Processes.
        shuffle: Whether to; each epoch anew.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int, world: int, *, shuffle: bool) -> None:
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes; Lightning does."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.images, self.batch_size)
        return whole + (rest >= self.world)

    def __iter__(self) -> Iterator[Share]:
        order = np.arange(self.images)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            rows = np.arange(self.rank, len(chosen), self.world)
            yield Share(seed_of(self.seed, self.epoch, batch), len(chosen), rows, chosen[rows])


@dataclass
class Batch:
    """Images of a batch that are here.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
        share: Which they are.
    """

    images: Tensor
    labels: Tensor
    share: Share


class Images(TorchDataset[Batch]):
    """Images of a data set as the network takes them, by `Share`; each in a guise that is drawn, or in all of them.

    Args:
        dataset: Which data set.
        indices: Which of its images, `[M]`.
        image: The image contract.
        sides: To which drawings are enlarged, beside being as they are.
        polarities: Whether dark and light of drawings are swapped.
        every: Each image counts once in every guise; otherwise once, in a guise drawn anew each time.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: NDArray[np.int64],
        image: ImageSpec,
        sides: Sequence[int],
        polarities: Sequence[bool],
        *,
        every: bool,
    ) -> None:
        self.dataset, self.indices, self.every = dataset, indices, every
        self.sides, self.polarities = sides, polarities
        self.preprocess = Preprocessor(image)
        self.guises = len(self._files(0))
        shape = (len(indices), self.guises, image.height, image.width, image.channels)
        self.keeps = int(np.prod(shape)) <= KEPT
        self._pixels = np.empty(shape if self.keeps else 0, np.uint8)
        self._known = np.zeros(len(indices) if self.keeps else 0, bool)

    def __len__(self) -> int:
        """How many positions there are."""
        return len(self.indices) * (self.guises if self.every else 1)

    def __getitem__(self, share: Share) -> Batch:
        if self.every:
            places, guises = np.divmod(share.indices, self.guises)
        else:
            places, guises = share.indices, share.draws(GUISES).integers(self.guises).numpy()
        if self.keeps:
            for place in places[~self._known[places]]:
                self._pixels[place] = self._decoded(int(place))
            self._known[places] = True
            pixels = self._pixels[places, guises]
        else:
            chosen = zip(places, guises, strict=True)
            pixels = np.stack([self.preprocess(self._files(int(place))[guise]) for place, guise in chosen])
        labels = self.dataset.labels[self.indices[places]]
        return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels), share)

    def _decoded(self, place: int) -> NDArray[np.uint8]:
        """One image in all its guises: uint8 `[guises, H, W, C]`."""
        return np.stack([self.preprocess(each) for each in self._files(place)])

    def _files(self, place: int) -> list[bytes]:
        file = self.dataset.images[self.indices[place]]
        if not self.dataset.drawn:
            return [file]
        return [each for inverted in self.polarities for each in renderings(file, self.sides, inverted).values()]


def loader(images: Images, shares: Shares) -> DataLoader[Batch]:
    """Batches in the order of `shares`; images that are not kept are decoded by a process per core."""
    workers = 0 if images.keeps else len(os.sched_getaffinity(0))
    return DataLoader(
        images,
        sampler=shares,
        batch_size=None,  # each item is a batch
        collate_fn=_same,  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _same(batch: Batch) -> Batch:
    return batch
