"""Draws a slice and its prediction with matplotlib, an extra that nothing else needs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Num

from biedsnet_jax.prediction.overlay import COLOURS, in_colours
from biedsnet_jax.runtime import extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of a panel's side.
_SIDE = 2.8


def check_installed() -> None:
    """Raises BadInput where matplotlib is not installed."""
    extras.need("viz", "A plot")


def plot_slice(
    image: Num[np.ndarray, "h w c"],
    maps: Mapping[str, Float[np.ndarray, "h w k"]],
    *,
    mask: Bool[np.ndarray, "h w k"],
    above: str,
    names: list[str],
    aspect: float = 1.0,
) -> "Figure":
    """Draws a row of panels for each class: image, mask outline, probability, entropy.

    `maps` holds "probability" and, for a panel more, "entropy". `above` says what the
    mask is above, and `names` those of the classes. `aspect` is the height of a pixel
    over its width. Raises BadInput without matplotlib.
    """
    check_installed()
    from matplotlib import pyplot

    probability, entropy = maps["probability"], maps.get("entropy")
    columns = 3 if entropy is None else 4
    figure, axes = pyplot.subplots(
        len(names),
        columns,
        figsize=(_SIDE * columns, _SIDE * len(names)),
        squeeze=False,
        layout="compressed",
    )
    # A notebook shows the figure as the value of its cell; left open, it would be shown
    # once more at the cell's end.
    pyplot.close(figure)
    for k, name in enumerate(names):
        row = axes[k]
        _show_image(row[0], image, name, aspect)
        _show_image(row[1], image, f"mask, above {above}", aspect)
        _outline(row[1], mask[..., k], COLOURS[k % len(COLOURS)])
        _show_map(row[2], probability[..., k], "probability", "gray", aspect)
        if entropy is not None:
            _show_map(row[3], entropy[..., k], "entropy (bits)", "magma", aspect)
    return figure


def _show_image(axes: "Axes", image, title, aspect) -> None:
    axes.imshow(in_colours(image).astype(np.uint8), aspect=aspect)
    _name(axes, title)


def _outline(axes: "Axes", mask, colour) -> None:
    # matplotlib warns of an outline of nothing.
    if not mask.any():
        return
    # With a margin, so that the outline of what touches an edge is closed.
    height, width = mask.shape
    rows, columns = np.arange(-1, height + 1), np.arange(-1, width + 1)
    shade = tuple(value / 255 for value in colour)
    axes.autoscale(False)
    axes.contour(
        columns, rows, np.pad(mask, 1), levels=[0.5], colors=[shade], linewidths=1.5
    )


def _show_map(axes: "Axes", values, title, colours, aspect) -> None:
    shown = axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect=aspect)
    axes.figure.colorbar(shown, ax=axes, fraction=0.046, ticks=[0, 0.5, 1])
    _name(axes, title)


def _name(axes: "Axes", title) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
