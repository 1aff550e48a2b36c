"""The command line of `export` with one more data set: `python -m tests.integration.few_digits train ...`.

`few-digits` is every fourth digit: enough to train on for a few epochs in a second.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from export import data
from export.__main__ import main


def load() -> data.Dataset:
    digits = data.load("digits")
    chosen = np.arange(0, len(digits.images), 4)
    images = tuple(digits.images[index] for index in chosen)
    labels = digits.labels[chosen]
    return data.Dataset("few-digits", images, labels, digits.label_names, data.stratified(images, labels), True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    data.LOADERS["few-digits"] = load
    sys.exit(main())
