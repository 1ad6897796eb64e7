"""`Phantom` draws CT-like axial chest slices with lung lesions, to run without data.

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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biedsnet_jax.data.sources.source import Facts, LabelledScan, scans_of_pictures
from biedsnet_jax.errors import BadInput

# Grey values in Hounsfield units.
AIR = -1000.0
LUNG = -850.0
FAT = -90.0
SOFT_TISSUE = 40.0
BONE = 450.0
GROUND_GLASS, CONSOLIDATION = 0, 1
# The first and the last slice of a case lie at these w.
TOP, BOTTOM = -0.62, 0.62


class _Lesion(NamedTuple):
    """A rippled ellipsoid; its two axes in the plane are turned by `angle`."""

    centre: list[float]  # u, v, w
    radius: list[float]  # along its axes in the plane, and along w
    angle: float  # radians
    ripples: list[list[float]]  # "3 4": phase and frequencies, per radius
    kind: int  # GROUND_GLASS or CONSOLIDATION
    density: float  # 0 for lung, 1 for soft tissue


class _Case(NamedTuple):
    """A drawn patient."""

    body: list[float]  # half axes over u and v
    lungs: list[list[float]]  # "2 4": centre (u, v) and half axes of each lung
    heart: list[float]  # centre (u, v) and half axes
    rib_phase: float  # radians
    vessels: np.ndarray  # "n 7": start (u, v, w), end (u, v, w), radius
    texture: list[list[float]]  # "5 4": phase and frequencies over u, v, w
    lesions: tuple[_Lesion, ...]
    # Slices with lesions; the empty ones lie above and below them.
    diseased: range
    width_mm: float  # of the field of view


@dataclass(frozen=True)
class Phantom:
    """Random-access source of drawn slices, case by case.

    It has `n_cases` of `slices_per_case` slices of `size` x `size` pixels.
    `phantom[i]` holds image float32 "h w 1" in Hounsfield-like units, mask uint8 "h w
    k", case, slice, spacing (row, column) in mm, path. The same arguments and index
    give the same bits, whatever was drawn before.

    `difficulty` in [0, 1] takes contrast from the lesions and widens their borders. In
    each case the share `empty_fraction` (rounded) of slices has no lesion, and every
    other slice has one. With `classes` 2 the classes are ground glass and
    consolidation, exclusive; with 1 they are one. Raises BadInput for a value out of
    range.
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
            "difficulty": (0, 1),
            "empty_fraction": (0, 1),
            "classes": (1, 2),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadInput(
                    f"The phantom's {name} is {value}. Give {low} to {high}."
                )

    def __len__(self) -> int:
        return self.n_cases * self.slices_per_case

    @property
    def cases(self) -> list[str]:
        """Case of every index; nothing is drawn."""
        return [f"phantom_{i // self.slices_per_case:03d}" for i in range(len(self))]

    @property
    def facts(self) -> Facts:
        """Returns no facts, since no files are read."""
        return Facts()

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Yields every slice of a case, which is a picture by itself."""
        return scans_of_pictures(self, case)

    def verify(self) -> None:
        """Does nothing, since no files are read."""

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, slice_ = divmod(int(index), self.slices_per_case)
        name = f"phantom_{number:03d}"
        case = _case(self, number)
        rng = np.random.default_rng([self.seed, number, slice_])
        image, mask = _render(self, case, slice_, rng)
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


# --- drawing one slice


def _render(phantom: Phantom, case: _Case, slice_: int, rng: np.random.Generator):
    """Draws one slice: image float32 "h w" and mask uint8 "h w k"."""
    w = _w_of(phantom, slice_)
    pixel = 2.0 / phantom.size
    centres = np.arange(phantom.size) + 0.5
    axis = (centres * pixel - 1.0).astype(np.float32)
    u = axis[None, :]
    v = axis[:, None]
    edge = max(pixel, 0.012)
    lung = _lungs(case, u, v, w)

    image = _thorax(case, u, v, w, edge)
    air, mask = _lung_tissue(phantom, case, u, v, slice_, lung)
    vessels = _vessels(case, axis, w, edge)
    air += vessels * (SOFT_TISSUE - air)
    image += _cover(lung, edge) * (air - image)
    return image + _noise(rng, image.shape), mask


def _vessels(case: _Case, axis, w: float, edge: float) -> np.ndarray:
    """Draws the vessels that cross the plane w, as weights."""
    vessels = np.zeros((len(axis), len(axis)), np.float32)
    for vessel in case.vessels:
        start = vessel[:3]
        end = vessel[3:6]
        radius = float(vessel[6])
        _draw_vessel(vessels, axis, start, end, radius, w, edge)
    return vessels


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws smooth noise of 38 HU."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, 0.6)
    # The filter leaves a standard deviation of 0.46.
    return 38.0 / 0.46 * noise


def _thorax(case: _Case, u, v, w: float, edge: float) -> np.ndarray:
    """Draws skin to mediastinum, everything but the lungs."""
    image = np.full((v.shape[0], u.shape[1]), AIR, np.float32)
    skin = _ellipse(u, v, (0.0, 0.0), case.body, 2.6)
    ribs = _ribs(case, u, v, w, skin)
    spine = _ellipse(u, v, (0.0, 0.37), (0.10, 0.09))
    sternum = _ellipse(u, v, (0.0, -0.55), (0.09, 0.025))
    organs = [
        (skin, FAT),
        (skin - 0.06, SOFT_TISSUE),
        (ribs, BONE),
        (spine, BONE),
        (sternum, BONE),
    ]
    for x, radius in _airways(w):
        airway = _ellipse(u, v, (x, -0.02), (radius, radius))
        organs.append((airway, AIR))
    for inside, grey in organs:
        image += _cover(inside, edge) * (grey - image)
    return image


def _airways(w: float) -> list[tuple[float, float]]:
    """The windpipe as (u, radius), below it the two main bronchi, then neither."""
    if w < -0.1:
        return [(0.0, 0.05)]
    if w < 0.12:
        return [(-0.08, 0.035), (0.08, 0.035)]
    return []


def _lung_tissue(phantom: Phantom, case: _Case, u, v, slice_: int, lung):
    """Draws lung tissue with lesions everywhere, and the lesions' mask in the lung."""
    w = _w_of(phantom, slice_)
    waves = [_wave(one, u, v, w) for one in case.texture]
    texture = sum(waves) / len(waves)
    dependent = np.clip(v / 0.45, 0, 1) ** 2
    air = LUNG + 130.0 * dependent + 45.0 * texture
    mask = np.zeros((*air.shape, 2), np.uint8)
    edge = 0.022 * (1 + 3 * phantom.difficulty)
    lesions = case.lesions if slice_ in case.diseased else ()
    for lesion in lesions:
        if abs(w - lesion.centre[2]) > 1.3 * lesion.radius[2]:
            continue
        inside = _lesion(lesion, u, v, w)
        uneven = 1 + 0.25 * texture
        weight = _cover(inside, edge) * lesion.density * uneven
        grey = LUNG + weight * (SOFT_TISSUE - LUNG)
        air = np.maximum(air, grey)
        seen = (inside > 0) & (lung > 0)
        mask[seen, lesion.kind] = 1
    if phantom.classes == 1:
        return air, mask.max(axis=-1, keepdims=True)
    mask[..., GROUND_GLASS] &= 1 - mask[..., CONSOLIDATION]
    return air, mask


def _wave(wave: list[float], x, y, z):
    """Values of one plane wave of `_waves`."""
    phase, kx, ky, kz = wave
    return np.cos(phase + kx * x + ky * y + kz * z)


def _cover(inside, edge: float):
    """Weight with which an organ is blended in, see above."""
    return np.clip(0.5 + inside / edge, 0.0, 1.0)


def _ellipse(u, v, centre, axes, power: float = 2.0):
    """Measures about the distance to a superellipse's border, positive inside."""
    x = (u - centre[0]) / axes[0]
    y = (v - centre[1]) / axes[1]
    if power == 2.0:
        r = np.sqrt(x**2 + y**2)
    else:
        r = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
    return (1.0 - r) * min(axes)


def _lungs(case: _Case, u, v, w: float):
    """Measures the distance to the border of the nearer lung, positive inside.

    Lungs are narrow at the apex. The heart is cut out of them and, near the base, the
    domes of the diaphragm are.
    """
    heart = _heart(case, u, v, w)
    left, right = [_lung(one, u, v, w) for one in case.lungs]
    return np.minimum(np.maximum(left, right), -heart)


def _heart(case: _Case, u, v, w: float):
    """Measures about the distance to the heart's border, positive inside."""
    from_middle = (w - 0.3) / 0.5
    size = math.sqrt(max(1.0 - from_middle**2, 0.05))
    centre = case.heart[:2]
    a, b = case.heart[2:]
    return _ellipse(u, v, centre, (a * size, b * size))


def _lung(lung: list[float], u, v, w: float):
    """Measures about the distance to the border of one lung, without the heart."""
    shrink = math.sqrt(max(0.0, 1.0 - (w - 0.15) ** 2))
    dome = min(max((w - 0.2) / 0.5, 0.02), 1.0)
    cu, cv, a, b = lung
    whole = _ellipse(u, v, (cu, cv), (a * shrink, b * shrink), 2.3)
    dome_centre = (0.8 * cu, cv - 0.14)
    dome_axes = (1.15 * a * dome, b * dome)
    under = _ellipse(u, v, dome_centre, dome_axes)
    return np.minimum(whole, -under)


def _ribs(case: _Case, u, v, w: float, skin):
    """Draws a ring under the skin, broken where the plane passes between two ribs."""
    ring = 0.024 - np.abs(skin - 0.105)
    along = np.arctan2(v / case.body[1], np.abs(u) / case.body[0])
    # Ribs slant, so the breaks move along the ring from slice to slice.
    slant = np.cos(9.0 * along + 14.0 * w + case.rib_phase)
    return np.minimum(ring, 0.06 * (slant - 0.25))


def _lesion(lesion: _Lesion, u, v, w: float):
    """Measures about the distance to a lesion's rippled border, positive inside."""
    du = u - lesion.centre[0]
    dv = v - lesion.centre[1]
    dw = w - lesion.centre[2]
    cos = math.cos(lesion.angle)
    sin = math.sin(lesion.angle)
    x = (cos * du + sin * dv) / lesion.radius[0]
    y = (cos * dv - sin * du) / lesion.radius[1]
    z = dw / lesion.radius[2]
    ripple = 0
    for phase, kx, ky, kz in lesion.ripples:
        ripple = ripple + np.sin(phase + kx * x + ky * y + kz * z)
    from_centre = np.sqrt(x**2 + y**2 + z**2)
    distance = 1.0 + 0.09 * ripple - from_centre
    # A lesion does not cross u = 0 into the other lung.
    own_side = math.copysign(1.0, lesion.centre[0]) * u
    return np.minimum(distance * min(lesion.radius[:2]), own_side)


def _draw_vessel(
    vessels, axis, start, end, radius: float, w: float, edge: float
) -> None:
    """Draws the part of a round tube near the plane w into `vessels`, as weights."""
    reach = radius + edge
    along = end - start
    above = min(start[2], end[2]) > w + reach
    below = max(start[2], end[2]) < w - reach
    if above or below:
        return
    # Only the bounding box of that part is computed, since a case has 144 tubes.
    near = np.array([w - reach, w + reach]) - start[2]
    cut = np.clip(near / (along[2] + 1e-9), 0.0, 1.0)
    ends = start[:2] + cut[:, None] * along[:2]
    low = np.searchsorted(axis, ends.min(axis=0) - reach)
    high = np.searchsorted(axis, ends.max(axis=0) + reach)
    rows = slice(low[1], high[1])
    columns = slice(low[0], high[0])
    du = axis[None, columns] - start[0]
    dv = axis[rows, None] - start[1]
    dw = w - start[2]
    distance = _from_axis((du, dv, dw), along)
    box = vessels[rows, columns]
    np.maximum(box, _cover(radius - distance, edge), out=box)


def _from_axis(point, along):
    """Distance of points from the line between 0 and `along`; all are (u, v, w)."""
    du, dv, dw = point
    au, av, aw = along
    # The point of the line nearest to a pixel is t along.
    projected = du * au + dv * av + dw * aw
    t = np.clip(projected / (along @ along), 0.0, 1.0)
    off_u = du - t * au
    off_v = dv - t * av
    off_w = dw - t * aw
    return np.sqrt(off_u**2 + off_v**2 + off_w**2)


# --- drawing lots for one case


@functools.lru_cache(maxsize=256)
def _case(phantom: Phantom, number: int) -> _Case:
    """Draws the patient `number` from the seed alone."""
    rng = np.random.default_rng([phantom.seed, number])
    left = [-0.36, -0.02, 0.28, 0.42]
    right = [0.36, -0.02, 0.28, 0.42]
    lungs = np.array([left, right])
    empty = round(phantom.empty_fraction * phantom.slices_per_case)
    first = int(rng.integers(0, empty + 1))
    diseased = phantom.slices_per_case - empty
    case = _Case(
        body=(rng.uniform(0.95, 1.08, 2) * (0.86, 0.63)).tolist(),
        lungs=(lungs * rng.uniform(0.93, 1.07, (2, 4))).tolist(),
        heart=(rng.uniform(0.8, 1.2, 4) * (0.11, -0.12, 0.22, 0.21)).tolist(),
        rib_phase=rng.uniform(0, 2 * math.pi),
        vessels=np.concatenate([_vessel_tree(rng, lung) for lung in lungs]),
        texture=_waves(rng, 5, 18.0),
        lesions=(),
        diseased=range(first, first + diseased),
        width_mm=rng.uniform(340, 400),
    )
    return case._replace(lesions=_lesions(phantom, case, rng))


def _waves(rng: np.random.Generator, n: int, frequency: float) -> list[list[float]]:
    """Draws phase and frequency over three axes of n plane waves, "n 4"."""
    phases = rng.uniform(0, 2 * math.pi, (n, 1))
    frequencies = rng.normal(0, frequency, (n, 3))
    return np.concatenate([phases, frequencies], axis=1).tolist()


def _vessel_tree(rng: np.random.Generator, lung: np.ndarray) -> np.ndarray:
    """Draws stems that fork from the hilum to random points near the pleura, "n 7"."""
    root = np.array([math.copysign(0.14, lung[0]), 0.02, 0.0])
    centre = np.array([lung[0], lung[1], 0.05])
    half_axes = (lung[2], lung[3], 0.75)
    segments = []
    for _ in range(18):
        towards = rng.normal(size=3)
        towards *= 0.9 / np.linalg.norm(towards)
        tip = centre + towards * half_axes
        fork = root + 0.45 * (tip - root) + rng.normal(0, 0.03, 3)
        segments.append([*root, *fork, 0.026])
        for spread in (0.08, 0.14, 0.20):
            end = tip + rng.normal(0, spread, 3)
            radius = rng.uniform(0.008, 0.018)
            segments.append([*fork, *end, radius])
    return np.array(segments)


def _lesions(
    phantom: Phantom, case: _Case, rng: np.random.Generator
) -> tuple[_Lesion, ...]:
    """Draws a lesion for each diseased slice that has none yet, then a few more."""
    planes = [_w_of(phantom, slice_) for slice_ in case.diseased]
    lesions: list[_Lesion] = []
    for w in planes:
        if not any(_covers(lesion, case, w) for lesion in lesions):
            lesions.append(_new_lesion(phantom, case, rng, w))
    if planes:
        for _ in range(rng.poisson(2)):
            w = rng.choice(planes)
            lesions.append(_new_lesion(phantom, case, rng, w))
    return tuple(lesions)


def _covers(lesion: _Lesion, case: _Case, w: float) -> bool:
    """Whether the plane w cuts a lesion well inside, at a place that is lung there."""
    u, v, centre_w = lesion.centre
    if abs(w - centre_w) >= 0.6 * lesion.radius[2]:
        return False
    return bool(_lungs(case, u, v, w) > 0.03)


def _new_lesion(
    phantom: Phantom, case: _Case, rng: np.random.Generator, w: float
) -> _Lesion:
    """Draws a lesion with its centre in the lung on the plane w."""
    centre = _place_in_lung(case, rng, w)
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
    return _Lesion(
        centre=centre,
        radius=radius,
        angle=rng.uniform(0, math.pi),
        ripples=_waves(rng, 3, 2.5),
        kind=kind,
        density=density,
    )


def _place_in_lung(case: _Case, rng: np.random.Generator, w: float) -> list[float]:
    """Draws a point (u, v, w) of the lung on the plane w."""
    u = rng.uniform(-0.7, 0.7, 1000)
    v = rng.uniform(-0.5, 0.5, 1000)
    depth = _lungs(case, u, v, w)
    # Some point always qualifies, even in a sliver of lung.
    inside = np.flatnonzero(depth >= min(0.05, 0.7 * depth.max()))
    # The shallowest of three: lesions lie near the pleura more often than deep.
    chosen = inside[rng.integers(len(inside), size=3)]
    at = chosen[np.argmin(depth[chosen])]
    return [float(u[at]), float(v[at]), float(w)]
