"""Packs the pictures of a report as JSON for its script, as many as fit.

Maps are base64 of deflated bytes. Imports no jax.
"""

import base64
import math
import zlib
from collections.abc import Sequence

import numpy as np

from biedsnet_jax.reporting.record import GREYS, GROUPS, LEVELS, Evaluated
from biedsnet_jax.scoring import postprocess_text

# Of all runs together, so that a report stays below 5 MB.
MOST_BYTES = 4_300_000
# So many slices of each run come before the denoising steps of one slice, and as many
# more before those of the next.
_TURN = 3


def payload(shown: Sequence[Evaluated]) -> dict:
    """Lists the runs, with slices from the worst to the best Dice, some with their steps.

    Where not all fit, every run keeps as many slices, the first of its list, which are
    the most telling.
    """
    room = MOST_BYTES
    parts = []
    for number, one in enumerate(shown):
        if one.data is None:
            continue
        for i in range(len(one.data.slices)):
            parts.append((i, number, i, _slice))
        for i in range(len(one.data.x_0)):
            parts.append(((i + 1) * _TURN, number, i, _steps))
    slices = {}
    for _, number, i, make in sorted(parts, key=lambda part: part[:2]):
        found = make(shown[number], i)
        cost = sum(map(len, _texts(found)))
        if cost > room:
            break
        slices.setdefault((number, i), {}).update(found)
        room -= cost
    runs = []
    for number, one in enumerate(shown):
        of_run = [found for (n, _), found in slices.items() if n == number]
        if of_run:
            runs.append(_run(one, of_run))
    return {"levels": LEVELS, "greys": GREYS, "runs": runs}


def _run(one, slices):
    threshold = float(one.run.fields.get("threshold", 0.5))
    return {
        "name": one.name,
        "threshold": threshold,
        # Then the slider draws what the evaluation has further changed.
        "processed": postprocess_text.has_rules(one.run.fields.get("postprocess")),
        "level": round(threshold * LEVELS),
        "times": one.data.times.tolist(),
        "classes": [
            one.run.titled(k + 1) for k in range(one.data.probability.shape[-1])
        ],
        "slices": sorted(slices, key=_worst_first),
    }


def _worst_first(found):
    # Slices without truth come last.
    mean = math.inf if found["mean"] is None else found["mean"]
    return mean, found["label"]


def _slice(one, i):
    data = one.data
    run = one.run
    _, height, width, classes = data.probability.shape
    row = int(data.slices[i]) * classes
    case, number, _ = run.images[row]
    dice = [
        None if math.isnan(x) else x for x in data.dice[row : row + classes].tolist()
    ]
    defined = [x for x in dice if x is not None]
    mean = None
    if defined:
        mean = sum(defined) / len(defined)
    known = None
    if data.known is not None:
        known = _packed(data.known[i])
    mutual = None
    if data.mutual_information is not None:
        mutual = _packed(data.mutual_information[i])
    return {
        "label": f"{case}, slice {number}",
        "group": GROUPS[data.groups[i]],
        "dice": dice,
        "mean": mean,
        "height": height,
        "width": width,
        "image": base64.b64encode(data.images[i]).decode(),
        "level": _packed(data.probability[i]),
        "truth": _packed(data.truth[i]),
        "known": known,
        "mutual": mutual,
    }


def _steps(one, i):
    _, _, height, width, _ = one.data.x_t.shape
    steps = {"x_t": _packed(one.data.x_t[i]), "x_0": _packed(one.data.x_0[i])}
    return {"steps": {"height": height, "width": width} | steps}


def _packed(maps):
    """Packs maps class by class, each by rows."""
    packed = zlib.compress(np.moveaxis(maps, -1, 0).tobytes())
    return base64.b64encode(packed).decode()


def _texts(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
