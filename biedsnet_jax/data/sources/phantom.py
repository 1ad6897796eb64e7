"""`Phantom`: CT-like axial chest slices with lung lesions, drawn on the fly, so that
everything runs without data.

A case is one drawn patient in world coordinates: u to the right, v to the back, w to
the feet; the field of view is [-1, 1] x [-1, 1] and a case's slices span w in [-0.62,
0.62]. A slice is the plane w = const of that patient, plus noise. Every organ is an
implicit function f, positive inside and about the distance to its border, and is
blended in with the weight clip(1/2 + f / edge, 0, 1), where `edge` is the width of that
border. A lesion's truth is f > 0.

What makes a threshold fail: vessels and the blurred lung border pass through the greys
of ground glass, the dependent (posterior) lung is denser than the rest, and
consolidation has nearly the grey of the chest wall that it often touches. At the
defaults the best single threshold inside the body reaches a mean Dice of 0.24 and the
best band 0.48; a small U-Net reaches 0.90 on held-out cases after 300 steps of 8
slices.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biedsnet_jax.data.sources.source import Facts
from biedsnet_jax.errors import BadInput

# Hounsfield units
AIR, LUNG, FAT, SOFT_TISSUE, BONE = -1000.0, -850.0, -90.0, 40.0, 450.0
GROUND_GLASS, CONSOLIDATION = 0, 1
# w of a case's first and last slice
TOP, BOTTOM = -0.62, 0.62


class _Lesion(NamedTuple):
    """A rippled ellipsoid; its two axes in the plane are turned by `angle`."""

    centre: list[float]  # u, v, w
    radius: list[float]  # along its axes in the plane, and along w
    angle: float
    # "3 4": phase and frequency over the three axes, in units of the radii
    ripples: list[list[float]]
    kind: int  # GROUND_GLASS or CONSOLIDATION
    density: float  # 0 for lung, 1 for soft tissue


class _Case(NamedTuple):
    body: list[float]  # half axes over u and v
    lungs: list[list[float]]  # centre (u, v) and half axes of either lung
    heart: list[float]  # centre (u, v) and half axes
    rib_phase: float
    vessels: np.ndarray  # "n 7": start (u, v, w), end (u, v, w), radius
    texture: list[list[float]]  # "5 4": phase and frequency over u, v, w
    lesions: tuple[_Lesion, ...]
    # slices with lesions, one run: the empty ones lie above and below it
    diseased: range
    width_mm: float  # of the field of view


@dataclass(frozen=True)
class Phantom:
    """Random-access source of `n_cases` x `slices_per_case` drawn slices of `size` x
    `size` pixels, case by case.

    `phantom[i]` holds image float32 "h w 1" in Hounsfield-like units, mask uint8 "h w
    k", case, slice, spacing (row, column) in mm, path. The same arguments and index
    give the same bits, whatever was drawn before. `difficulty` in [0, 1] takes contrast
    from the lesions and widens their borders. Of each case's slices the share
    `empty_fraction` (rounded) has no lesion and every other slice has one. With
    `classes` 2 the classes are ground glass and consolidation, exclusive; with 1 they
    are one. Raises BadInput for a value out of range.
    """

    n_cases: int = 40
    slices_per_case: int = 12
    size: int = 64
    seed: int = 0
    difficulty: float = 0.2
    empty_fraction: float = 0.15
    classes: int = 1

    def __post_init__(self):
        limits = {
            "n_cases": (1, 10**6),
            "slices_per_case": (1, 999),
            "size": (16, 4096),
            "seed": (0, 2**63),
        }
        limits |= {"difficulty": (0, 1), "empty_fraction": (0, 1), "classes": (1, 2)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise BadInput(
                    f"phantom, {name} = {getattr(self, name)}; give {low} to {high}"
                )

    def __len__(self) -> int:
        return self.n_cases * self.slices_per_case

    @property
    def cases(self) -> list[str]:
        """The case of every index, without drawing any."""
        return [f"phantom_{i // self.slices_per_case:03d}" for i in range(len(self))]

    @property
    def facts(self) -> Facts:
        """Nothing is read."""
        return Facts()

    def verify(self) -> None:
        """Nothing is read."""

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, slice_ = divmod(int(index), self.slices_per_case)
        name, case = f"phantom_{number:03d}", _case(self, number)
        image, mask = _render(
            self, case, slice_, np.random.default_rng([self.seed, number, slice_])
        )
        return {
            "image": image[..., None],
            "mask": mask,
            "case": name,
            "slice": f"{slice_:03d}",
            "spacing": (case.width_mm / self.size,) * 2,
            "path": f"{name}/{slice_:03d}",
        }


def _w_of(phantom: Phantom, slice_: int) -> float:
    return TOP + (BOTTOM - TOP) * (slice_ + 0.5) / phantom.slices_per_case


# --- drawing one slice -----------------------------------------------------------------------------------------------


def _render(phantom: Phantom, case: _Case, slice_: int, rng: np.random.Generator):
    """One slice: image float32 "h w" and mask uint8 "h w k"."""
    w, pixel = _w_of(phantom, slice_), 2.0 / phantom.size
    axis = ((np.arange(phantom.size) + 0.5) * pixel - 1.0).astype(np.float32)
    u, v = axis[None, :], axis[:, None]
    edge = max(pixel, 0.012)
    lung = _lungs(case, u, v, w)

    image = _thorax(case, u, v, w, edge)
    air, mask = _lung_tissue(phantom, case, u, v, slice_, lung)
    vessels = np.zeros_like(image)
    for start, end, radius in zip(
        case.vessels[:, :3], case.vessels[:, 3:6], case.vessels[:, 6]
    ):
        _draw_vessel(vessels, axis, start, end, float(radius), w, edge)
    air += vessels * (SOFT_TISSUE - air)
    image += _cover(lung, edge) * (air - image)

    noise = ndimage.gaussian_filter(
        rng.standard_normal(image.shape, dtype=np.float32), 0.6
    )
    # 0.46 is the standard deviation that the filter leaves
    return image + 38.0 / 0.46 * noise, mask


def _thorax(case: _Case, u, v, w: float, edge: float) -> np.ndarray:
    """Skin to mediastinum, everything but the lungs."""
    image = np.full((v.shape[0], u.shape[1]), AIR, np.float32)
    skin = _ellipse(u, v, (0.0, 0.0), case.body, 2.6)
    organs = [
        (skin, FAT),
        (skin - 0.06, SOFT_TISSUE),
        (_ribs(case, u, v, w, skin), BONE),
    ]
    spine, sternum = (
        _ellipse(u, v, (0.0, 0.37), (0.10, 0.09)),
        _ellipse(u, v, (0.0, -0.55), (0.09, 0.025)),
    )
    organs += [(spine, BONE), (sternum, BONE)]
    windpipe = (
        [(0.0, 0.05)]
        if w < -0.1
        else [(-0.08, 0.035), (0.08, 0.035)]
        if w < 0.12
        else []
    )
    organs += [(_ellipse(u, v, (x, -0.02), (r, r)), AIR) for x, r in windpipe]
    for inside, grey in organs:
        image += _cover(inside, edge) * (grey - image)
    return image


def _lung_tissue(phantom: Phantom, case: _Case, u, v, slice_: int, lung):
    """Lung with its lesions, without vessels, drawn everywhere; and the lesions' mask,
    cut to the lung.
    """
    w = _w_of(phantom, slice_)
    texture = sum(
        np.cos(p + ku * u + kv * v + kw * w) for p, ku, kv, kw in case.texture
    ) / len(case.texture)
    air = LUNG + 130.0 * np.clip(v / 0.45, 0, 1) ** 2 + 45.0 * texture
    mask = np.zeros((*air.shape, 2), np.uint8)
    if slice_ in case.diseased:
        for lesion in case.lesions:
            if abs(w - lesion.centre[2]) > 1.3 * lesion.radius[2]:
                continue
            inside = _lesion(lesion, u, v, w)
            weight = (
                _cover(inside, 0.022 * (1 + 3 * phantom.difficulty))
                * lesion.density
                * (1 + 0.25 * texture)
            )
            air = np.maximum(air, LUNG + weight * (SOFT_TISSUE - LUNG))
            mask[(inside > 0) & (lung > 0), lesion.kind] = 1
    if phantom.classes == 1:
        return air, mask.max(axis=-1, keepdims=True)
    mask[..., GROUND_GLASS] &= 1 - mask[..., CONSOLIDATION]
    return air, mask


def _cover(inside, edge: float):
    return np.clip(0.5 + inside / edge, 0.0, 1.0)


def _ellipse(u, v, centre, axes, power: float = 2.0):
    """About the distance to the border of a superellipse, positive inside."""
    if power == 2.0:
        r = np.sqrt(((u - centre[0]) / axes[0]) ** 2 + ((v - centre[1]) / axes[1]) ** 2)
    else:
        r = (
            np.abs((u - centre[0]) / axes[0]) ** power
            + np.abs((v - centre[1]) / axes[1]) ** power
        ) ** (1 / power)
    return (1.0 - r) * min(axes)


def _lungs(case: _Case, u, v, w: float):
    """Either lung, narrow at the apex; the heart and, near the base, the diaphragm's
    domes are cut out.
    """
    shrink = math.sqrt(max(0.0, 1.0 - (w - 0.15) ** 2))
    dome = min(max((w - 0.2) / 0.5, 0.02), 1.0)
    beat = math.sqrt(max(1.0 - ((w - 0.3) / 0.5) ** 2, 0.05))
    heart = -_ellipse(
        u, v, case.heart[:2], (case.heart[2] * beat, case.heart[3] * beat)
    )
    sides = []
    for cu, cv, a, b in case.lungs:
        whole = _ellipse(u, v, (cu, cv), (a * shrink, b * shrink), 2.3)
        sides.append(
            np.minimum(
                whole,
                -_ellipse(u, v, (0.8 * cu, cv - 0.14), (1.15 * a * dome, b * dome)),
            )
        )
    return np.minimum(np.maximum(*sides), heart)


def _ribs(case: _Case, u, v, w: float, skin):
    """A ring under the skin, broken where the plane passes between two of the slanting
    ribs.
    """
    ring = 0.024 - np.abs(skin - 0.105)
    along = np.arctan2(v / case.body[1], np.abs(u) / case.body[0])
    return np.minimum(
        ring, 0.06 * (np.cos(9.0 * along + 14.0 * w + case.rib_phase) - 0.25)
    )


def _lesion(lesion: _Lesion, u, v, w: float):
    """About the distance to the lesion's rippled border, positive inside; a lesion
    keeps to its own lung.
    """
    du, dv, dw = u - lesion.centre[0], v - lesion.centre[1], w - lesion.centre[2]
    cos, sin = math.cos(lesion.angle), math.sin(lesion.angle)
    x = (cos * du + sin * dv) / lesion.radius[0]
    y = (cos * dv - sin * du) / lesion.radius[1]
    z = dw / lesion.radius[2]
    ripple = sum(
        np.sin(p + kx * x + ky * y + kz * z) for p, kx, ky, kz in lesion.ripples
    )
    inside = (1.0 + 0.09 * ripple - np.sqrt(x**2 + y**2 + z**2)) * min(
        lesion.radius[:2]
    )
    return np.minimum(inside, math.copysign(1.0, lesion.centre[0]) * u)


def _draw_vessel(
    vessels, axis, start, end, radius: float, w: float, edge: float
) -> None:
    """Write the part of a round tube that crosses the plane w into `vessels` (weights),
    within its bounding box.
    """
    reach, along = radius + edge, end - start
    if min(start[2], end[2]) > w + reach or max(start[2], end[2]) < w - reach:
        return
    cut = np.clip(
        (np.array([w - reach, w + reach]) - start[2]) / (along[2] + 1e-9), 0.0, 1.0
    )
    ends = start[:2] + cut[:, None] * along[:2]
    low = np.searchsorted(axis, ends.min(axis=0) - reach)
    high = np.searchsorted(axis, ends.max(axis=0) + reach)
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    du, dv, dw = (
        axis[None, box[1]] - start[0],
        axis[box[0], None] - start[1],
        w - start[2],
    )
    t = np.clip(
        (du * along[0] + dv * along[1] + dw * along[2]) / (along @ along), 0.0, 1.0
    )
    distance = np.sqrt(
        (du - t * along[0]) ** 2 + (dv - t * along[1]) ** 2 + (dw - t * along[2]) ** 2
    )
    np.maximum(vessels[box], _cover(radius - distance, edge), out=vessels[box])


# --- drawing lots for one case ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _case(phantom: Phantom, number: int) -> _Case:
    """The patient `number`, from the seed alone."""
    rng = np.random.default_rng([phantom.seed, number])
    lungs = np.array([[-0.36, -0.02, 0.28, 0.42], [0.36, -0.02, 0.28, 0.42]])
    empty = round(phantom.empty_fraction * phantom.slices_per_case)
    first = int(rng.integers(0, empty + 1))
    case = _Case(
        body=(rng.uniform(0.95, 1.08, 2) * (0.86, 0.63)).tolist(),
        lungs=(lungs * rng.uniform(0.93, 1.07, (2, 4))).tolist(),
        heart=(rng.uniform(0.8, 1.2, 4) * (0.11, -0.12, 0.22, 0.21)).tolist(),
        rib_phase=rng.uniform(0, 2 * math.pi),
        vessels=np.concatenate([_vessel_tree(rng, lung) for lung in lungs]),
        texture=_waves(rng, 5, 18.0),
        lesions=(),
        diseased=range(first, first + phantom.slices_per_case - empty),
        width_mm=rng.uniform(340, 400),
    )
    return case._replace(lesions=_lesions(phantom, case, rng))


def _waves(rng: np.random.Generator, n: int, frequency: float) -> list[list[float]]:
    """Phase and frequency over three axes of n plane waves, "n 4"."""
    return np.concatenate(
        [rng.uniform(0, 2 * math.pi, (n, 1)), rng.normal(0, frequency, (n, 3))], axis=1
    ).tolist()


def _vessel_tree(
    rng: np.random.Generator, lung: np.ndarray, branches: int = 18
) -> np.ndarray:
    """Stems from the hilum that fork on their way to random points near the pleura, "n
    7".
    """
    root = np.array([math.copysign(0.14, lung[0]), 0.02, 0.0])
    segments = []
    for _ in range(branches):
        towards = rng.normal(size=3)
        towards *= 0.9 / np.linalg.norm(towards)
        tip = np.array([lung[0], lung[1], 0.05]) + towards * (lung[2], lung[3], 0.75)
        fork = root + 0.45 * (tip - root) + rng.normal(0, 0.03, 3)
        segments.append([*root, *fork, 0.026])
        for spread in (0.08, 0.14, 0.20):
            segments.append(
                [*fork, *(tip + rng.normal(0, spread, 3)), rng.uniform(0.008, 0.018)]
            )
    return np.array(segments)


def _lesions(
    phantom: Phantom, case: _Case, rng: np.random.Generator
) -> tuple[_Lesion, ...]:
    """A lesion for each diseased slice that no earlier one covers, then a few more
    anywhere among them.
    """
    planes = [_w_of(phantom, slice_) for slice_ in case.diseased]
    lesions: list[_Lesion] = []
    for w in planes:
        if not any(_covers(lesion, case, w) for lesion in lesions):
            lesions.append(_new_lesion(phantom, case, rng, w))
    if planes:
        lesions += [
            _new_lesion(phantom, case, rng, rng.choice(planes))
            for _ in range(rng.poisson(2))
        ]
    return tuple(lesions)


def _covers(lesion: _Lesion, case: _Case, w: float) -> bool:
    u, v, centre_w = lesion.centre
    return abs(w - centre_w) < 0.6 * lesion.radius[2] and bool(
        _lungs(case, u, v, w) > 0.03
    )


def _new_lesion(
    phantom: Phantom, case: _Case, rng: np.random.Generator, w: float
) -> _Lesion:
    """A lesion centred in the lung on the plane w, more often near the pleura than
    deep.
    """
    u, v = rng.uniform(-0.7, 0.7, 1000), rng.uniform(-0.5, 0.5, 1000)
    depth = _lungs(case, u, v, w)
    # never none, even in a sliver of lung
    inside = np.flatnonzero(depth >= min(0.05, 0.7 * depth.max()))
    chosen = inside[rng.integers(len(inside), size=3)]
    at = chosen[np.argmin(depth[chosen])]
    kind = int(rng.random() < 0.35)
    density = rng.uniform(0.42, 0.62) * (1 - 0.6 * phantom.difficulty)
    if kind == CONSOLIDATION:
        density = rng.uniform(0.75, 0.95) * (1 - 0.3 * phantom.difficulty)
    size = math.exp(rng.uniform(math.log(0.08), math.log(0.22)))
    radius = [
        size * rng.uniform(1.0, 1.4),
        size * rng.uniform(0.8, 1.0),
        max(0.12, size * rng.uniform(1.2, 2.0)),
    ]
    centre = [float(u[at]), float(v[at]), float(w)]
    return _Lesion(
        centre, radius, rng.uniform(0, math.pi), _waves(rng, 3, 2.5), kind, density
    )
