"""`digits`: the 1,797 handwritten digits that come with scikit-learn.

They are the test part of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998): light ink on a
dark ground, 8×8 pixels of 0 to 16, here scaled to 0 to 255. The image contract of a network says how they come to its
input size.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from export.data.base import Dataset, encoded, stratified


@cache
def load() -> Dataset:
    """The digits."""
    from sklearn.datasets import load_digits  # seconds to import, and only this needs it

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = tuple(encoded(Image.fromarray(each)) for each in pixels)
    labels = bunch.target.astype(np.int64)
    return Dataset("digits", images, labels, tuple("0123456789"), stratified(images, labels), drawn=True)
