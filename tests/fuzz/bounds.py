"""`python -m tests.fuzz.bounds`: what the dearest images within the default limits take, and who waits for them.

Each is decoded in a process of its own. Then four clients send them to a server that decodes on two threads, and
`/healthz` is asked all the while.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from service.errors import FoveaError
from service.preprocess import Preprocessor
from service.spec import ImageSpec
from tests.images import ADAM7, encoded, png_chunk
from tests.models import publish_tiny
from tests.server import Server

SIDE = 7071  # pixels: 7071² are just within 50 million
COMMON = {"png alpha, interlaced", "jpeg", "webp", "gif, transparent", "tiff deflate"}  # sent to the server


def png(bits: int, colour: int, samples: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """An interlaced PNG that is nearly black, so that few bytes hold many; each row filtered by the dearest filter."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, 1)
    packer, packed = zlib.compressobj(), []
    for left, top, step_x, step_y in ADAM7:
        columns, rows = -(-(SIDE - left) // step_x), -(-(SIDE - top) // step_y)
        row = b"\4\1" + bytes((columns * bits * samples + 7) // 8 - 1)
        packed += [packer.compress(row) for _ in range(rows)]
    data = b"".join([*packed, packer.flush()])
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def blocks(mode: str, width: int = SIDE, height: int = SIDE, size: int = 32) -> Image.Image:
    """Squares of random colours."""
    shape = (height // size + 1, width // size + 1)
    chance = np.random.default_rng(0)
    bands = [chance.integers(0, 256, shape, np.uint8) for _ in Image.new(mode, (1, 1)).getbands()]
    small = Image.merge(mode, list(map(Image.fromarray, bands)))
    return small.resize((shape[1] * size, shape[0] * size), Image.Resampling.NEAREST).crop((0, 0, width, height))


def transparent_gif() -> bytes:
    """A frame smaller than its screen, so that both are made."""
    data = encoded(Image.new("P", (SIDE - 1, SIDE)), "GIF", transparency=0)
    return data[:6] + struct.pack("<HH", SIDE, SIDE) + data[10:]


def bmp() -> bytes:
    """4 bits a pixel: with 8, no 50 million fit in 20 MB."""
    width, height = SIDE, 5500
    row = (width * 4 + 31) // 32 * 4
    sizes = (0, 0, 54 + 64, 40, width, height, 1, 4, 0, 0, 0, 0, 16, 0)
    return struct.pack("<2sIIIIiiHHIIiiII", b"BM", *sizes) + bytes(64) + bytes(row * height)


def tiff(compression: str, mode: str) -> bytes:
    return encoded(Image.new(mode, (SIDE, SIDE)), "TIFF", compression=compression)


FILES: dict[str, Callable[[], bytes]] = {
    "png alpha, interlaced": lambda: png(8, 6, 4),
    "png transparent colour": lambda: png(8, 2, 3, (b"tRNS", bytes(6))),
    "png 16 bits grey": lambda: png(16, 0, 1, (b"tRNS", bytes(2))),
    "png palette": lambda: png(8, 3, 1, (b"PLTE", bytes(768)), (b"tRNS", bytes(256))),
    "jpeg": lambda: encoded(blocks("RGB"), "JPEG", subsampling=0),
    "jpeg progressive": lambda: encoded(blocks("RGB"), "JPEG", subsampling=0, progressive=True),
    "jpeg progressive cmyk": lambda: encoded(blocks("CMYK"), "JPEG", progressive=True),
    "webp": lambda: encoded(blocks("RGBA", 16_383, 3050, 16), "WEBP", quality=20, method=0),
    "webp lossless": lambda: encoded(blocks("RGBA", 16_383, 3050, 8), "WEBP", lossless=True, quality=20, method=2),
    "gif, transparent": transparent_gif,
    "bmp": bmp,
    "tiff lzw": lambda: tiff("tiff_lzw", "RGBA"),
    "tiff deflate": lambda: tiff("tiff_adobe_deflate", "CMYK"),
    "tiff jpeg": lambda: tiff("jpeg", "RGB"),
    "tiff lzma": lambda: tiff("lzma", "RGB"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.bounds", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="under load (default: %(default)s)")
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        print(*decoded(args.decode), sep="\t")
        return
    with tempfile.TemporaryDirectory(prefix="fovea-bounds-") as folder:
        paths = written(Path(folder))
        print("| | MB | s of processor | MB of memory | ms another thread waits |\n| --- | --- | --- | --- | --- |")
        for name, path in paths.items():
            command = [sys.executable, "-m", "tests.fuzz.bounds", "--decode", str(path)]
            figures = subprocess.check_output(command, text=True).strip().replace("\t", " | ")
            print(f"| {name} | {path.stat().st_size / 1e6:.2f} | {figures} |", flush=True)
        print(
            waiting([path.read_bytes() for name, path in paths.items() if name in COMMON], Path(folder), args.seconds)
        )


def written(folder: Path) -> dict[str, Path]:
    paths = {}
    for name, make in FILES.items():
        paths[name] = folder / name.replace(" ", "-")
        paths[name].write_bytes(make())
    return paths


def decoded(path: Path) -> tuple[str, str, str]:
    """Seconds, megabytes, and the longest that another thread waited; of a JPEG, without shrinking it on the way."""
    preprocess = Preprocessor(ImageSpec(height=224, width=224, resize_to=256, interpolation="nearest"))
    data, waits, done = path.read_bytes(), [0.0], threading.Event()

    def beat() -> None:
        last = time.monotonic()
        while not done.wait(0.001):
            waits.append(time.monotonic() - last)
            last = time.monotonic()

    before = peak_megabytes()
    beating = threading.Thread(target=beat)
    beating.start()
    started = time.thread_time()
    try:
        preprocess(data)
        outcome = ""
    except FoveaError as error:
        outcome = f" ({error.code})"
    seconds = time.thread_time() - started
    done.set()
    beating.join()
    return f"{seconds:.2f}", f"{peak_megabytes() - before:.0f}", f"{max(waits) * 1000:.0f}{outcome}"


def peak_megabytes() -> float:
    """Of this process; what getrusage says of a new one is its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def waiting(images: list[bytes], folder: Path, seconds: float) -> str:
    """How long `/healthz` takes without and with those images."""
    publish_tiny(folder / "models")
    with Server(folder / "models", folder, threads=2).start() as server:
        idle = asked(server, seconds)
        end = time.monotonic() + seconds
        answered: list[int] = []
        clients = [
            threading.Thread(target=sent, args=(server, images[at:] + images[:at], end, answered)) for at in range(4)
        ]
        for client in clients:
            client.start()
        loaded = asked(server, seconds)
        for client in clients:
            client.join()
    codes = {code: answered.count(code) for code in sorted(set(answered))}
    return f"healthz, idle: {summary(idle)}\nwith {len(answered)} images ({codes}): {summary(loaded)}"


def asked(server: Server, seconds: float) -> list[float]:
    """Milliseconds of one request after the other, on one connection."""
    taken, end = [], time.monotonic() + seconds
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while time.monotonic() < end:
            started = time.monotonic()
            client.get("/healthz").raise_for_status()
            taken.append((time.monotonic() - started) * 1000)
            time.sleep(0.005)
    return taken


def sent(server: Server, images: list[bytes], end: float, answered: list[int]) -> None:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        while time.monotonic() < end:
            for image in images:
                answer = client.post("/v1/models/tiny/classify", content=image)
                answered.append(answer.status_code)


def summary(taken: list[float]) -> str:
    p99 = statistics.quantiles(taken, n=100)[98]
    return f"p50 {statistics.median(taken):.1f} ms, p99 {p99:.1f} ms, longest {max(taken):.1f} ms of {len(taken)}"


if __name__ == "__main__":
    main()
