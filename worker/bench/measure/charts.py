"""Line charts as SVG text, for reports that need nothing but a browser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 42
_NUM_TICKS = 5
# Told apart by people with any kind of colour vision, on white and on black.
_COLOURS = ("#2f7ed8", "#e08214", "#2ca25f", "#b2479c", "#8c8c8c")


@dataclass(frozen=True, slots=True)
class Line:
    """A named sequence of points; `stepped` holds each value until the next."""

    name: str
    points: Sequence[tuple[float, float]]
    stepped: bool = False


def chart(
    title: str, x_label: str, lines: Sequence[Line], *, log_x: bool = False, max_x: float = 0.0
) -> str:
    """Draw lines over common axes; y begins at zero.

    `log_x` leaves points at or below zero out. Without any point the chart says so.
    """
    scale = math.log10 if log_x else float
    kept = [(line, [(scale(x), y) for x, y in line.points if x > 0 or not log_x]) for line in lines]
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>']
    if not xs:
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT / 2:g}">nothing was measured</text>')
        return _svg(title, parts)
    low, high = (min(xs), max(xs)) if log_x else (min(0.0, *xs), max(max_x, *xs))
    axes = _Axes(low, high if high > low else low + 1, max(*ys, 1e-9))
    parts += _grid(axes, x_label, log_x=log_x)
    for number, (line, points) in enumerate(kept):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_path(axes, points, colour, stepped=line.stepped))
        x = _LEFT + number * (_WIDTH - _LEFT) / max(1, len(kept))
        parts.append(
            f'<rect x="{x:.0f}" y="{_HEIGHT - 10}" width="12" height="4" fill="{colour}"/>'
            f'<text x="{x + 17:.0f}" y="{_HEIGHT - 4}">{escape(line.name)}</text>'
        )
    return _svg(title, parts)


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where values lie on the picture."""

    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        """Return the column of a value."""
        share = (value - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return the row of a value."""
        return _HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM)


def _grid(axes: _Axes, x_label: str, *, log_x: bool) -> list[str]:
    """Draw ticks with their numbers, and name the x axis."""
    parts = []
    for value in _ticks(0, axes.top):
        y = axes.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{_short(value)}</text>')
    for value in _decades(axes.low, axes.high) if log_x else _ticks(axes.low, axes.high):
        x = axes.x(value)
        number = _short(10**value if log_x else value)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        y = _HEIGHT - _BOTTOM + 14
        parts.append(f'<text class="mid" x="{x:.1f}" y="{y}">{number}</text>')
    y = _HEIGHT - _BOTTOM + 14
    parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y}">{escape(x_label)}</text>')
    return parts


def _path(axes: _Axes, points: Sequence[tuple[float, float]], colour: str, *, stepped: bool) -> str:
    """Draw one line."""
    places = [(axes.x(x), axes.y(y)) for x, y in points]
    steps = [f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(places)]
    if stepped:
        steps = [steps[0], *(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])] if steps else []
    return f'<path class="line" stroke="{colour}" d="{"".join(steps)}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two values."""
    raw = (high - low) / _NUM_TICKS
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [idx * step for idx in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return the logarithms of 1, 2 and 5 times powers of ten between two logarithms."""
    marks = [
        exponent + math.log10(factor)
        for exponent in range(math.floor(low), math.ceil(high) + 1)
        for factor in (1, 2, 5)
    ]
    found = [mark for mark in marks if low <= mark <= high]
    return found if len(found) <= 2 * _NUM_TICKS else [mark for mark in found if mark % 1 == 0]


def _short(value: float) -> str:
    """Return a number in few characters."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            base = 1e3 if suffix == "k" else limit
            return f"{value / base:g}{suffix}"
    return f"{value:.6g}"


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
