"""Variations of training images, on whole batches of tensors, by recipes in words: `rotation=15,flip,noise`.

Whatever a recipe names, in whatever order, happens in the order of `AUGMENTATIONS`. Augmentations that move pixels are
composed into one grid, so that every image is sampled once; what comes in at the borders is 0, the ground of drawings.
Augmentations of an image depend on its place in the batch alone, see `export.draws`.

Sources: affine and elastic distortions Simard, Steinkraus, Platt 2003; crops, aspect ratios and flips Szegedy et al.
2014 (arXiv:1409.4842); colour Howard 2013 (arXiv:1312.5402); erasing DeVries and Taylor 2017 (arXiv:1708.04552) and
Zhong et al. 2017 (arXiv:1708.04896); mixup Zhang et al. 2017 (arXiv:1710.09412); CutMix Yun et al. 2019
(arXiv:1905.04899).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documentation has it
from torch import Tensor

from export.draws import Draws
from export.errors import ExportError, UnknownName

NONE = "none"
DRAWINGS = "translation=0.1,rotation=15,stretching=0.15,shearing=0.2,exposure=0.7,inversion=0.5"
PHOTOGRAPHS = "crop=0.35,flip=0.5,colour=0.3"

SMOOTHNESS = 1 / 8  # deviation of the Gaussian that smooths elastic distortions; Simard et al.: 4 of 29 pixels
ASPECT = 4 / 3  # largest of crops
ERASED_ASPECT = 3.3  # largest of erased rectangles (Zhong et al.)
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
SIZES = 16  # different ones at most that `resolution` shrinks images of one size to


@dataclass(frozen=True)
class _Kind:
    what: str
    default: float
    least: float = 0.0
    most: float = math.inf


_KINDS = {
    "translation": _Kind("move by up to this share of the side, on both axes", 0.1, most=1),
    "rotation": _Kind("turn by up to so many degrees", 15, most=180),
    "stretching": _Kind("stretch each axis by itself by up to this, on a logarithmic scale", 0.15, most=2),
    "shearing": _Kind("slant by up to this share of the height", 0.2, most=2),
    "flip": _Kind("mirror this share of the images left to right", 0.5, most=1),
    "crop": _Kind("zoom in on a window of at least this share of the area", 0.35, least=0.01, most=1),
    "lens": _Kind("barrel or pincushion distortion, by up to this at the middle of the sides", 0.1, most=1),
    "elastic": _Kind("smooth random displacements of this standard deviation, a share of the side", 0.03, most=1),
    "thickness": _Kind("make light strokes thicker or thinner by up to this many pixels", 0.7, most=1),
    "resolution": _Kind("shrink to at least this share of the side and enlarge again", 0.25, least=0.01, most=1),
    "blur": _Kind("Gaussian blur with a standard deviation of up to so many pixels", 1.0, most=100),
    "erasing": _Kind("blacken a rectangle of up to this share of the area", 0.2, most=1),
    "colour": _Kind("change brightness, contrast, saturation and tint by up to this share", 0.3, most=1),
    "exposure": _Kind("dim by a factor of at least this", 0.7, most=1),
    "inversion": _Kind("swap dark and light in this share of the images", 0.5, most=1),
    "noise": _Kind("Gaussian noise with a standard deviation of up to so many grey levels", 10, most=255),
    "mixup": _Kind("blend pairs of images and their labels by shares from Beta(this, this)", 0.2, least=0.01, most=100),
    "cutmix": _Kind("paste parts of images into others, by areas from Beta(this, this)", 1.0, least=0.01, most=100),
}
AUGMENTATIONS: Mapping[str, str] = {name: f"{kind.what} ({kind.default:g})" for name, kind in _KINDS.items()}


@dataclass(frozen=True)
class Recipe:
    """Augmentations with their strengths; made by `parse`.

    Attributes:
        strengths: By name, in the order of `AUGMENTATIONS`.
    """

    strengths: Mapping[str, float]

    def __str__(self) -> str:
        """As `parse` takes it, every strength spelt out."""
        return ",".join(f"{name}={_spelt(strength)}" for name, strength in self.strengths.items()) or NONE

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Vary each image by amounts of its own.

        Args:
            images: float `[N, C, H, W]` in [0, 255].
            draws: Of these images.

        Returns:
            The same shape, in [0, 255].
        """
        varied = self._warped(images, draws)
        for name, change in _CHANGES.items():
            if name in self.strengths:
                varied = change(varied, self.strengths[name], draws)
        return images if varied is images else varied.clamp(0, 255)

    def mix(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mix each image and its target with another image's, by mixup or CutMix; a coin decides where both are named.

        Partners are other images of those given. Where processes share a batch, each mixes the images that it has.

        Args:
            images: float `[N, C, H, W]`.
            targets: Probabilities, float `[N, K]`.
            draws: Of these images.

        Returns:
            Images and targets of the same shapes; those given, if the recipe names neither.
        """
        ways = [name for name in ("mixup", "cutmix") if name in self.strengths]
        if not ways:
            return images, targets
        shift = 1 + int(draws.integers(max(1, len(images) - 1))[0])
        # What stays of an image, at every pixel, [N, 1, H, W] or [N, 1, 1, 1].
        kept = images.new_ones(len(images), 1, 1, 1)
        if "mixup" in ways:
            kept = _beta(self.strengths["mixup"], draws).reshape(-1, 1, 1, 1)
        if "cutmix" in ways:
            area = 1 - _beta(self.strengths["cutmix"], draws)
            outside = 1 - _rectangles(images, area, torch.ones_like(area), draws)
            chosen = draws.uniform(0, 1, 1, 1, 1) < 1 / len(ways)
            kept = torch.where(chosen, outside, kept)
        share = kept.mean(dim=(2, 3))
        mixed = kept * images + (1 - kept) * images.roll(shift, 0)
        return mixed, share * targets + (1 - share) * targets.roll(shift, 0)

    def _warped(self, images: Tensor, draws: Draws) -> Tensor:
        """All that moves pixels, as one grid of places to take them from: x and y from -1 to 1."""
        named = [name for name in (*_AFFINE, "lens", "elastic") if name in self.strengths]
        if not named:
            return images
        height, width = images.shape[-2:]
        matrix = torch.eye(3, device=images.device).repeat(len(images), 1, 1)
        for name, affine in _AFFINE.items():
            if name in named:
                matrix = matrix @ affine(self.strengths[name], draws)
        # Angles are those of pixels, which are no squares in the grid's units unless the image is one.
        units = torch.tensor([[1, height / width, 1], [width / height, 1, 1]], device=images.device)
        grid = F.affine_grid(matrix[:, :2] * units, list(images.shape), align_corners=False)
        if "lens" in named:
            amount = draws.uniform(-self.strengths["lens"], self.strengths["lens"], 1, 1, 1)
            grid = grid * (1 + amount * grid.square().sum(dim=3, keepdim=True))
        if "elastic" in named:
            grid = grid + 2 * self.strengths["elastic"] * _smooth_noise(height, width, draws)
        return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def named(text: str | None, *, drawn: bool) -> str:
    """A recipe that was asked for; where none was, what suits drawings or photographs."""
    if text is not None:
        return text
    return DRAWINGS if drawn else PHOTOGRAPHS


def parse(text: str) -> Recipe:
    """A recipe from words.

    Args:
        text: Names of `AUGMENTATIONS` with commas between, each with `=strength` or without, as in "rotation=15,flip";
            "none" or nothing for no augmentation.

    Raises:
        UnknownName: There is no such augmentation.
        ExportError: A strength is none, or beyond its limits; or a name comes twice.
    """
    strengths: dict[str, float] = {}
    for part in text.split(",") if text.strip() not in ("", NONE) else ():
        name, equals, value = (each.strip() for each in part.partition("="))
        if name not in _KINDS:
            raise UnknownName.among("augmentation", name, _KINDS)
        if name in strengths:
            raise ExportError(f"{name} is twice in the augmentations {text!r}: leave one out")
        strengths[name] = _strength(name, value) if equals else _KINDS[name].default
    return Recipe({name: strengths[name] for name in _KINDS if name in strengths})


def _strength(name: str, value: str) -> float:
    kind = _KINDS[name]
    try:
        strength = float(value)
    except ValueError:
        strength = math.nan
    if not kind.least <= strength <= kind.most or math.isinf(strength):
        limits = f"from {kind.least:g} to {kind.most:g}" if kind.most < math.inf else f"of at least {kind.least:g}"
        raise ExportError(f"{name}={value}: give a number {limits}, such as {name}={kind.default:g}")
    return strength


def _spelt(strength: float) -> str:
    return repr(strength).removesuffix(".0")


# What moves pixels: 3×3 matrices [N, 3, 3] from places in the result to places in the image, in pixels of a square one.


def _matrices(**entries: Tensor) -> Tensor:
    """The identity but for some entries `[N]`: `xy` is how far y moves x, `x` by how much x moves at all."""
    some = next(iter(entries.values()))
    found = torch.eye(3, device=some.device).repeat(len(some), 1, 1)
    for name, values in entries.items():
        row, column = (*("xy".index(axis) for axis in name), 2)[:2]
        found[:, row, column] = values
    return found


def _translation(limit: float, draws: Draws) -> Tensor:
    return _matrices(x=draws.uniform(-2 * limit, 2 * limit), y=draws.uniform(-2 * limit, 2 * limit))


def _rotation(degrees: float, draws: Draws) -> Tensor:
    angle = draws.uniform(-math.radians(degrees), math.radians(degrees))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return _matrices(xx=cosine, xy=-sine, yx=sine, yy=cosine)


def _shearing(limit: float, draws: Draws) -> Tensor:
    return _matrices(xy=draws.uniform(-limit, limit))


def _stretching(limit: float, draws: Draws) -> Tensor:
    return _matrices(xx=draws.uniform(-limit, limit).exp(), yy=draws.uniform(-limit, limit).exp())


def _flip(share: float, draws: Draws) -> Tensor:
    return _matrices(xx=torch.where(draws.uniform(0, 1) < share, -1.0, 1.0))


def _crop(least: float, draws: Draws) -> Tensor:
    area = draws.uniform(least, 1).sqrt()
    aspect = draws.uniform(-math.log(ASPECT), math.log(ASPECT)).mul(0.5).exp()
    wide, high = (area * aspect).clamp(max=1), (area / aspect).clamp(max=1)
    x, y = ((1 - side) * draws.uniform(-1, 1) for side in (wide, high))
    return _matrices(xx=wide, yy=high, x=x, y=y)


_AFFINE: Mapping[str, Callable[[float, Draws], Tensor]] = {
    "translation": _translation,
    "rotation": _rotation,
    "shearing": _shearing,
    "stretching": _stretching,
    "flip": _flip,
    "crop": _crop,
}


def _smooth_noise(height: int, width: int, draws: Draws) -> Tensor:
    """Gaussian noise of variance 1, smoothed by a Gaussian: `[N, H, W, 2]`.

    Simard et al. smooth noise of every pixel. As the outcome has no details, noise on a coarser lattice gives the same.
    """
    rows, columns = _bumps(height), _bumps(width)
    noise = draws.normal(2, rows.shape[1], columns.shape[1])
    return (rows.to(noise.device) @ noise @ columns.T.to(noise.device)).permute(0, 2, 3, 1)


@cache
def _bumps(size: int) -> Tensor:
    """Gaussians around the points of a lattice, at each pixel of a side `[size, points]`; rows of length 1."""
    points = torch.arange(-2, 1 / SMOOTHNESS + 3) * SMOOTHNESS
    pixels = (torch.arange(size) + 0.5) / size
    return F.normalize(torch.exp(-0.5 * ((pixels[:, None] - points) / SMOOTHNESS).square()))


# What changes pixels where they are: images [N, C, H, W] in [0, 255] to the same; clamping comes at the end.


def _thickness(images: Tensor, limit: float, draws: Draws) -> Tensor:
    amount = draws.uniform(-limit, limit, 1, 1, 1)
    side = torch.where(amount < 0, -1.0, 1.0)  # the least of some pixels is the greatest of their negatives
    return images + amount.abs() * (side * F.max_pool2d(side * images, 3, 1, 1) - images)


def _resolution(images: Tensor, least: float, draws: Draws) -> Tensor:
    height, width = images.shape[-2:]
    rows, columns = _rescalings(height, least), _rescalings(width, least)
    # One share for both sides: the tables may be of different lengths.
    share = draws.uniform(0, 1).cpu()
    row, column = (table[(share * len(table)).long()].to(images) for table in (rows, columns))
    return row[:, None] @ images @ column[:, None].mT


@cache
def _rescalings(size: int, least: float) -> Tensor:
    """Matrices `[sizes, size, size]` that shrink a side, averaging as scanners do, and enlarge it again by a cubic."""
    smallest = max(1, round(size * least))
    sizes = torch.linspace(smallest, size, min(SIZES, size - smallest + 1)).round().int().tolist()
    shrunk = [F.interpolate(torch.eye(size)[None], int(each), mode="area") for each in sizes]
    # Resizing the last axis of the identity gives the matrix of doing so, transposed.
    return torch.cat([F.interpolate(each[None], (size, size), mode="bicubic")[0].mT for each in shrunk])


def _blur(images: Tensor, limit: float, draws: Draws) -> Tensor:
    deviation = draws.uniform(0, limit, 1, 1).clamp(min=1e-3)

    def matrix(size: int) -> Tensor:
        pixels = torch.arange(size, device=images.device)
        weights = torch.exp(-0.5 * ((pixels[:, None] - pixels) / deviation).square())
        return (weights / weights.sum(dim=2, keepdim=True))[:, None]

    return matrix(images.shape[2]) @ images @ matrix(images.shape[3]).mT


def _erasing(images: Tensor, limit: float, draws: Draws) -> Tensor:
    aspect = draws.uniform(-math.log(ERASED_ASPECT), math.log(ERASED_ASPECT)).exp()
    return images * (1 - _rectangles(images, draws.uniform(0, limit), aspect, draws))


def _colour(images: Tensor, limit: float, draws: Draws) -> Tensor:
    """One linear map of the channels: tint and saturation, then contrast about the mean, then brightness."""
    brightness, contrast, saturation = draws.uniform(1 - limit, 1 + limit, 3, 1, 1).unbind(1)
    tint = draws.uniform(1 - limit / 2, 1 + limit / 2, 3)
    channels = images.shape[1]
    if channels == 3:
        grey = torch.tensor(LUMA, device=images.device).expand(3, 3)
        matrix = saturation * torch.eye(3, device=images.device) + (1 - saturation) * grey
        images = (matrix @ torch.diag_embed(tint) @ images.flatten(2)).reshape(images.shape)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return brightness[..., None] * (mean + contrast[..., None] * (images - mean))


def _exposure(images: Tensor, dimmest: float, draws: Draws) -> Tensor:
    return images * draws.uniform(dimmest, 1, 1, 1, 1)


def _inversion(images: Tensor, share: float, draws: Draws) -> Tensor:
    return torch.where(draws.uniform(0, 1, 1, 1, 1) < share, 255 - images, images)


def _noise(images: Tensor, limit: float, draws: Draws) -> Tensor:
    return images + draws.uniform(0, limit, 1, 1, 1) * draws.normal(*images.shape[1:])


_CHANGES: Mapping[str, Callable[[Tensor, float, Draws], Tensor]] = {
    "thickness": _thickness,
    "resolution": _resolution,
    "blur": _blur,
    "erasing": _erasing,
    "colour": _colour,
    "exposure": _exposure,
    "inversion": _inversion,
    "noise": _noise,
}


def _rectangles(images: Tensor, area: Tensor, aspect: Tensor, draws: Draws) -> Tensor:
    """1 in a rectangle around a random place, as far as it is inside the image, and 0 elsewhere: `[N, 1, H, W]`.

    Args:
        images: `[N, C, H, W]`.
        area: `[N]`, as a share of the image's.
        aspect: `[N]`, width by height, where 1 is the image's own.
        draws: Of these images.
    """

    def inside(size: int, share: Tensor) -> Tensor:
        centre = draws.uniform(0, 1)
        pixels = (torch.arange(size, device=images.device) + 0.5) / size
        return ((pixels - centre[:, None]).abs() < share[:, None] / 2).to(images.dtype)

    high, wide = (area / aspect).sqrt(), (area * aspect).sqrt()
    return (inside(images.shape[2], high)[:, :, None] * inside(images.shape[3], wide)[:, None, :])[:, None]


def _beta(alpha: float, draws: Draws) -> Tensor:
    """`[N]` from Beta(alpha, alpha), by the inverse of its distribution function: one number drawn for each image."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # a quarter of a second, and only mixing needs it

    uniform = draws.uniform(0, 1)
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.cpu().double().numpy())).to(uniform)
