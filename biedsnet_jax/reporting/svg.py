"""Draws line and dot charts as SVG text.

The page's style sheet colours them, by the classes c0 to c7, and c8 for grey.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

Number = int | float
COLOURS = 8
GREY = 8
_WIDTH = 480
_HEIGHT = 310
# Margins.
_LEFT = 56
_RIGHT = 26
_TOP = 12
_BOTTOM = 52


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one name.

    Those that are not finite, or have no place on a logarithmic axis, are left out.
    """

    name: str  # "": not in the legend
    x: Sequence[Number]
    y: Sequence[Number]
    colour: int = 0  # below COLOURS, or GREY
    dots: bool = False  # else a line
    dashed: bool = False
    faint: bool = False
    tips: Sequence[str] = ()  # shown where the pointer rests on a dot


@dataclasses.dataclass(frozen=True)
class Axis:
    """One side of a chart; without `low` and `high` it spans the points."""

    label: str
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    names: Sequence[str] = ()  # shown in place of the numbers 0, 1, 2, ...


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart, and in words what it says."""

    title: str
    caption: str
    x: Axis
    y: Axis
    series: list[Series]


def svg(figure: Figure) -> str:
    """Draws a figure as an `svg` element that scales with its place, and its legend."""
    shown = [_drawable(figure, one) for one in figure.series]
    x = _Scale(
        figure.x, [value for one in shown for value in one.x], _LEFT, _WIDTH - _RIGHT
    )
    y = _Scale(
        figure.y, [value for one in shown for value in one.y], _HEIGHT - _BOTTOM, _TOP
    )
    label = html.escape(f"{figure.title}: {figure.y.label} against {figure.x.label}")
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">']
    parts += [_x_tick(x, value, name) for value, name in x.ticks()]
    parts += [_y_tick(y, value, name) for value, name in y.ticks()]
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(centre, _HEIGHT - 6, figure.x.label, "middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    y_label = _text(12, middle, figure.y.label, "middle")
    parts.append(f'<g transform="rotate(-90 12 {middle:.0f})">{y_label}</g>')
    parts += [_dots(one, x, y) if one.dots else _line(one, x, y) for one in shown]
    return "\n".join([*parts, "</svg>", _legend(shown)])


class _Scale:
    """Turns values into places between `start` and `end`."""

    def __init__(self, axis, values, start, end):
        self.axis = axis
        self.start = start
        self.end = end
        low = axis.low
        high = axis.high
        # Without points there is a scale all the same.
        if low is None:
            low = min(values, default=0.1 if axis.log else 0.0)
        if high is None:
            high = max(values, default=1.0)
        if axis.log:
            low = 10.0 ** math.floor(math.log10(low))
            high = 10.0 ** math.ceil(math.log10(high))
        if high <= low:
            low, high = (low, low * 10) if axis.log else (low - 0.5, low + 0.5)
        self.low = low
        self.high = high

    def __call__(self, value):
        low, high = self.low, self.high
        if self.axis.log:
            low, value, high = map(math.log10, (low, value, high))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self):
        """(value, text) of about six ticks, or of every name where there is room."""
        axis = self.axis
        if axis.names:
            every = math.ceil(len(axis.names) / 12)
            return [(i, name) for i, name in enumerate(axis.names) if i % every == 0]
        if axis.log:
            powers = range(
                round(math.log10(self.low)), round(math.log10(self.high)) + 1
            )
            return [(10.0**power, f"{10.0**power:g}") for power in powers]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        # Rounding must not make a step of 0.2 too small by a hair.
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(n * step, f"{n * step:.10g}") for n in range(first, last + 1)]


def _drawable(figure, one):
    """The series without the points that have no place."""

    def fits(value, axis):
        return math.isfinite(value) and (value > 0 or not axis.log)

    kept = []
    for i, (a, b) in enumerate(zip(one.x, one.y)):
        if fits(a, figure.x) and fits(b, figure.y):
            kept.append(i)
    return dataclasses.replace(
        one,
        x=[one.x[i] for i in kept],
        y=[one.y[i] for i in kept],
        tips=[one.tips[i] for i in kept] if one.tips else (),
    )


def _line(one, x, y):
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(one.x, one.y))
    return f'<polyline class="{_classes(one)}" points="{points}"/>'


def _dots(one, x, y):
    radius = 2.5 if one.faint else 4
    circles = []
    for a, b, tip in zip(one.x, one.y, one.tips or [""] * len(one.x)):
        title = f"<title>{html.escape(tip)}</title>"
        place = f'cx="{x(a):.1f}" cy="{y(b):.1f}"'
        circles.append(f'<circle {place} r="{radius}">{title}</circle>')
    return f'<g class="dots {_classes(one)}">{"".join(circles)}</g>'


def _classes(one):
    names = [f"c{one.colour}"]
    if one.dashed:
        names.append("dashed")
    if one.faint:
        names.append("faint")
    return " ".join(names)


def _x_tick(x, value, name):
    at = x(value)
    bottom = _HEIGHT - _BOTTOM
    # The end of a long name is what tells it from others.
    short = name if len(name) < 12 else "…" + name[-9:]
    line = f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>'
    if not x.axis.names or len(x.axis.names) < 6:
        return line + _text(at, bottom + 16, short, "middle")
    text = _text(at, bottom + 11, short, "end")
    return f'{line}<g transform="rotate(-30 {at:.1f} {bottom + 11})">{text}</g>'


def _y_tick(y, value, name):
    at = y(value)
    line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return line + _text(_LEFT - 5, at + 4.5, name, "end")


def _text(x, y, text, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _legend(shown):
    entries = {one.name: one for one in shown if one.name}
    if not entries:
        return ""
    items = "".join(
        f'<li class="{_classes(one)}"><span>{html.escape(name)}</span></li>'
        for name, one in entries.items()
    )
    return f'<ul class="legend">{items}</ul>'
