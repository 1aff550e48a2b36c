"""A picture of what augmentation makes of training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from export import architectures, augment, data
from export.augment_preview import preview as draw
from export.draws import Draws, seed_of
from export.train import Task

IMAGES = 8  # of different classes, as far as there are
VARIANTS = 8


def preview(task: Task, path: Path) -> None:
    """Draw some training images with variants of each, as a network would see them.

    Args:
        task: Which images, and how they are augmented.
        path: Of the PNG.
    """
    dataset = data.load(task.data, task.shots, task.options.seed)
    recipe = augment.parse(augment.named(task.options.augment, drawn=dataset.drawn))
    train = dataset.split.train
    _, first = np.unique(dataset.labels[train], return_index=True)
    spread = first[np.linspace(0, len(first) - 1, min(IMAGES, len(first))).astype(int)]
    chosen = train[spread]
    pixels = dataset.pixels(chosen, architectures.get(task.architecture).image)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    targets = torch.eye(len(chosen))
    variants = []
    for variant in range(VARIANTS):
        draws = Draws(seed_of(task.options.seed, variant), len(chosen))
        augmented, _ = recipe.mix(recipe(images, draws), targets, draws)
        variants.append(augmented.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    labels = [dataset.label_names[dataset.labels[index]] for index in chosen]
    draw(pixels, labels, np.stack(variants, axis=1), str(recipe), path)
