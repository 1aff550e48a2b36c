"""Data sets that are fetched once: from a server on this machine, with few images in the real formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export import data
from export.errors import DataError
from export.torchvision_shim import import_torchvision

TRAIN, TEST = 60, 20
CLOSED = "http://127.0.0.1:9/"  # nobody listens there


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address where its files can be fetched."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FOVEA_DATA", str(folder))
    return folder


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images with the labels 0 to 9 in turn; the training images come first."""
    pixels = np.random.default_rng(0).integers(0, 256, (TRAIN + TEST, 28, 28), np.uint8)
    return pixels, (np.arange(TRAIN + TEST) % 10).astype(np.uint8)


def write_mnist(
    folder: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The four files of MNIST with these images, whose checksums torchvision then expects; its class."""
    kind = import_torchvision().datasets.MNIST
    checksums = []
    for name, part in (("train", slice(None, TRAIN)), ("t10k", slice(TRAIN, None))):
        for suffix, values in (("images-idx3", pixels[part]), ("labels-idx1", labels[part])):
            packed = gzip.compress(idx(values))
            (folder / f"{name}-{suffix}-ubyte.gz").write_bytes(packed)
            checksums.append((f"{name}-{suffix}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(kind, "resources", checksums)
    return kind


def test_mnist_is_fetched_once_and_its_test_images_stay(
    mirror: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = digits()
    pixels[7] = pixels[TRAIN + 7]  # a test image among the training images
    pixels[21], pixels[32] = pixels[11], pixels[11]  # copies of a 1: another 1, and a 2
    pixels[TRAIN + 1] = pixels[TRAIN]  # the official test images are not ours to mend
    kind = write_mnist(mirror[0], pixels, labels, monkeypatch)
    monkeypatch.setattr(kind, "mirrors", [mirror[1]])
    found = data.load("mnist")
    assert found.drawn
    assert found.label_names == tuple("0123456789")
    assert found.split.test.tolist() == list(range(TRAIN, TRAIN + TEST))
    dropped = {7, 11, 21, 32}
    assert sorted([*found.split.train, *found.split.validation]) == sorted({*range(TRAIN)} - dropped)
    assert np.bincount(found.labels[found.split.validation]).tolist() == [1] * 10
    assert {each.path: each.reason for each in found.skipped} == {
        "training image 7": "also test image 7",
        "training image 11": "also under class 2",
        "training image 21": "also under class 2",
        "training image 32": "also under class 1",
    }
    for index in (0, TRAIN + 3):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found.images[index]))), pixels[index])
    assert found.labels.tolist() == labels.tolist()
    monkeypatch.setattr(kind, "mirrors", [CLOSED])
    assert np.array_equal(data.load("mnist").split.train, found.split.train)


def test_half_of_a_file_does_not_break_the_next_attempt(
    mirror: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = digits()
    kind = write_mnist(mirror[0], pixels, labels, monkeypatch)
    monkeypatch.setattr(kind, "mirrors", [mirror[1]])
    images = mirror[0] / "t10k-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:1000])
    with pytest.raises(DataError, match="mnist is not here and cannot be fetched"):
        data.load("mnist")
    images.write_bytes(whole)
    assert len(data.load("mnist").images) == TRAIN + TEST
    for length in (0, 10, 2000):  # killed while it was unpacking
        unpacked = cache / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
        unpacked.write_bytes(unpacked.read_bytes()[:length])
        assert len(data.load("mnist").images) == TRAIN + TEST


@pytest.mark.parametrize(
    ("name", "kind", "folder", "file"),
    [
        ("mnist", "MNIST", "MNIST/raw", "t10k-labels-idx1-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw", "train-images-idx3-ubyte.gz"),
        ("cifar10", "CIFAR10", "", "cifar-10-python.tar.gz"),
    ],
)
def test_offline_one_is_told_what_to_do(
    name: str, kind: str, folder: str, file: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = getattr(import_torchvision().datasets, kind)
    address = "url" if name == "cifar10" else "mirrors"
    monkeypatch.setattr(source, address, CLOSED + file if name == "cifar10" else [CLOSED, CLOSED])
    with pytest.raises(DataError, match="connect to the internet, or put") as caught:
        data.load(name)
    message = str(caught.value)
    assert file in message
    assert message.endswith(str(cache / folder))
    assert "refused" in message
    assert "\n" not in message


def test_files_put_there_by_hand_are_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = digits()
    folder = cache / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    mnist = write_mnist(folder, pixels, labels, monkeypatch)
    kind = import_torchvision().datasets.FashionMNIST
    monkeypatch.setattr(kind, "resources", mnist.resources)
    monkeypatch.setattr(kind, "mirrors", [CLOSED])
    found = data.load("fashion-mnist")
    assert not found.drawn
    assert found.label_names[9] == "Ankle boot"
    assert len(found.split.test) == TEST


def test_cifar10_comes_from_its_batches(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = import_torchvision().datasets.CIFAR10
    folder = cache / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6 * 20, 3, 32, 32), np.uint8)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    checksums = []
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        batch = {"data": pixels[20 * number : 20 * number + 20].reshape(20, -1), "labels": [*range(10), *range(10)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        checksums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "train_list", checksums[:5])
    monkeypatch.setattr(kind, "test_list", checksums[5:])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta})
    monkeypatch.setattr(kind, "url", CLOSED + kind.filename)
    found = data.load("cifar10")
    assert not found.drawn
    assert found.label_names == tuple(names)
    assert found.split.test.tolist() == list(range(100, 120))
    assert len(found.split.train) + len(found.split.validation) == 100
    image = np.asarray(Image.open(io.BytesIO(found.images[119])))
    np.testing.assert_array_equal(image, pixels[119].transpose(1, 2, 0))
    (folder / "data_batch_3").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        data.load("cifar10")
