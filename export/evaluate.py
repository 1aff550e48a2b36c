"""What a trained network is worth on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.data import AS_SUCH, Dataset
from export.learner import normalised
from service import calibration
from service.spec import ImageSpec

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """What came of the test images, and the temperature that the validation images ask for.

    Attributes:
        pixels: The test images as the network sees them, uint8 `[M, H, W, C]`.
        logits: `[M, K]` of the test images as such.
        labels: int64 `[M]`, their classes.
        renderings: Accuracy on the test images in every guise; of many, on a sample of them.
        validation_accuracy: On the validation images as such.
        temperature: Fitted on the validation images.
    """

    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    renderings: dict[str, float]
    validation_accuracy: float
    temperature: float

    @property
    def confusion(self) -> NDArray[np.int64]:
        """`[K, K]`: rows are true classes, columns predicted ones."""
        classes = self.logits.shape[1]
        counts = np.bincount(self.labels * classes + self.logits.argmax(axis=1), minlength=classes**2)
        return counts.reshape(classes, classes).astype(np.int64)

    def calibration_errors(self) -> tuple[float, float]:
        """Expected calibration error on the test images, without and with the temperature."""
        before, after = (
            calibration.expected_calibration_error(calibration.probabilities(self.logits, each), self.labels)
            for each in (1.0, self.temperature)
        )
        return before, after


def evaluate(network: nn.Module, dataset: Dataset, image: ImageSpec) -> Evaluation:
    """Test a network on a data set's test images, and calibrate it on its validation images."""
    validation, test = dataset.split.validation, dataset.split.test
    fitted = logits_of(network, dataset.pixels(validation, image), image)
    labels = dataset.labels[test]
    found = dataset.answers(test, image, lambda pixels: logits_of(network, pixels, image))
    sampled = dataset.labels[found.sample]
    renderings = {name: float((each.argmax(axis=1) == sampled).mean()) for name, each in found.guises.items()}
    return Evaluation(
        pixels=found.pixels,
        logits=found.as_such,
        labels=labels,
        renderings=renderings | {AS_SUCH: float((found.as_such.argmax(axis=1) == labels).mean())},
        validation_accuracy=float((fitted.argmax(axis=1) == dataset.labels[validation]).mean()),
        temperature=calibration.fit_temperature(fitted, dataset.labels[validation]),
    )


@torch.inference_mode()
def logits_of(network: nn.Module, pixels: NDArray[np.uint8], image: ImageSpec) -> NDArray[np.float32]:
    """Logits `[M, K]`, or whatever rows the network gives, of uint8 `[M, H, W, C]`."""
    network.eval()
    batches = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH)
    return np.concatenate([network(normalised(batch.float(), image)).numpy() for batch in batches])
