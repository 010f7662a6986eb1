# SPDX-License-Identifier: MIT
"""The picture of a comparison: bars for the medians, whiskers from the least to the greatest.

The picture is laid out once, on a canvas of rectangles, lines and texts. SVG is written here and
needs nothing; PNG needs matplotlib, whose own charts would be another picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Protocol

from ..errors import SetupFailed, UsageError
from .results import OURS, Comparison, format_figure, format_ratio, machine_line, ratio, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ("KINDS", "draw", "require_kind")

KINDS = (".svg", ".png")

_COLOURS = ("#1b6ca8", "#d1603d", "#e3a857", "#6b8f71", "#8d6a9f", "#8a8a8a")
_INK, _GREY, _GRID = "#222222", "#666666", "#dddddd"
_LEFT, _PANEL, _VALUES, _RIGHT = 205, 290, 175, 16
_TOP, _BAR, _GAP, _BOTTOM = 84, 15, 14, 62
_DPI = 160
_LEGEND = (
    "Bars are medians, whiskers the least and the greatest run; "
    "x is uffdswap's figure divided by the peer's, the median over the rounds."
)


class _Canvas(Protocol):
    """Takes pixels from the upper left corner; y of a text is its base line."""

    def rect(self, x: float, y: float, width: float, height: float, colour: str) -> None: ...

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None: ...

    def text(  # noqa: PLR0913 # a text has all of these
        self, x: float, y: float, text: str, *, size: int, colour: str, bold: bool, anchor: str
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Panel:
    """One figure of all comparisons, as bars on one scale."""

    title: str
    key: str
    write: Callable[[float], str]
    logarithmic: bool = False


def _thousands(value: float) -> str:
    if value < 1000:
        return format_figure(value)
    return f"{value / 1000:,.0f} k" if value >= 10_000 else f"{value / 1000:.1f} k"


def _microseconds(value: float) -> str:
    return f"{value:.3g} µs" if value < 100 else f"{value:,.0f} µs"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


_WORK_PANELS = (
    _Panel("pages a second: more is better", "pages_per_second", _thousands),
    _Panel(
        "p99 of an access: less is better (log scale)", "p99_us", _microseconds, logarithmic=True
    ),
)
_APP_PANELS = (
    _Panel("seconds: less is better", "wall_seconds", _seconds),
    _Panel("CPU seconds: less is better", "cpu_seconds", _seconds),
)


def require_kind(path: str) -> None:
    """Raise `UsageError` for a file that cannot be drawn, `SetupFailed` without matplotlib."""
    if not path.endswith(KINDS):
        remedy = f"give --plot a name that ends in {' or '.join(KINDS)}"
        raise UsageError(f"cannot draw {path}", remedy=remedy)
    if path.endswith(".png"):
        try:
            import matplotlib.figure  # noqa: F401, PLC0415 # optional
        except ImportError as error:
            remedy = "install it: pip install matplotlib; or take a name that ends in .svg"
            raise SetupFailed(
                f"cannot draw {path}", cause="PNG needs matplotlib", remedy=remedy
            ) from error


def draw(path: str, comparisons: Sequence[Comparison], about: str) -> bytes:
    """Return the picture, in the format that the file's name asks for."""
    kind = _PngCanvas if path.endswith(".png") else _SvgCanvas
    panels = _APP_PANELS if comparisons[0].is_app else _WORK_PANELS
    rows = sum(len(comparison.contenders) for comparison in comparisons)
    height = _TOP + rows * (_BAR + 2) + len(comparisons) * _GAP + _BOTTOM
    width = _LEFT + len(panels) * (_PANEL + _VALUES) + _RIGHT
    canvas = kind(width, height)
    _draw_head(canvas, comparisons, about)
    for number, panel in enumerate(panels):
        _draw_panel(canvas, panel, comparisons, _LEFT + number * (_PANEL + _VALUES), height)
    _draw_names(canvas, comparisons)
    _write(canvas, 16, height - 14, _LEGEND, size=11, colour=_GREY)
    return canvas.finish()


def _write(  # noqa: PLR0913 # as above
    canvas: _Canvas,
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    colour: str = _INK,
    bold: bool = False,
    anchor: str = "start",
) -> None:
    canvas.text(x, y, text, size=size, colour=colour, bold=bold, anchor=anchor)


def _draw_head(canvas: _Canvas, comparisons: Sequence[Comparison], about: str) -> None:
    _write(canvas, 16, 26, f"uffdswap and the kernel's swap: {about}", size=15, bold=True)
    _write(canvas, 16, 46, machine_line(), colour=_GREY)


def _order(comparisons: Sequence[Comparison]) -> list[str]:
    """Return all contenders, so that each has one colour in the whole picture."""
    return list(dict.fromkeys(name for c in comparisons for name in c.contenders))


def _draw_names(canvas: _Canvas, comparisons: Sequence[Comparison]) -> None:
    y = _TOP
    for comparison in comparisons:
        _write(canvas, 16, y + _BAR - 3, shorten(comparison.name, 16), bold=True)
        for name in comparison.contenders:
            _write(canvas, _LEFT - 8, y + _BAR - 3, name, size=11, anchor="end")
            y += _BAR + 2
        y += _GAP


def _draw_panel(
    canvas: _Canvas, panel: _Panel, comparisons: Sequence[Comparison], left: float, height: float
) -> None:
    _write(canvas, left, _TOP - 12, panel.title, bold=True)
    scale = _scale(panel, comparisons)
    if scale is None:
        return
    for x, label in scale.ticks(panel.write):
        canvas.line(left + x, _TOP - 4, left + x, height - _BOTTOM, _GRID)
        _write(
            canvas, left + x, height - _BOTTOM + 16, label, size=10, colour=_GREY, anchor="middle"
        )
    colours = dict(zip(_order(comparisons), _COLOURS * 2, strict=False))
    y: float = _TOP
    for comparison in comparisons:
        for name in comparison.contenders:
            _draw_bar(canvas, panel, comparison, name, (left, y), scale, colours[name])
            y += _BAR + 2
        y += _GAP


def _draw_bar(  # noqa: PLR0913, PLR0917 # where, what and how
    canvas: _Canvas,
    panel: _Panel,
    comparison: Comparison,
    name: str,
    corner: tuple[float, float],
    scale: _Scale,
    colour: str,
) -> None:
    left, y = corner
    middle = y + _BAR / 2
    values = [value for value in comparison.values(name, panel.key) if value]
    median = comparison.median(name, panel.key)
    if not values or not median:
        _write(canvas, left + 4, y + _BAR - 3, "no run came to its end", size=11, colour=_GREY)
        return
    least, most = scale.place(min(values)), scale.place(max(values))
    canvas.rect(left, y, max(scale.place(median), 1), _BAR, colour)
    if len(values) > 1:
        canvas.line(left + least, middle, left + most, middle, _INK)
        for x in (least, most):
            canvas.line(left + x, middle - 3, left + x, middle + 3, _INK)
    found = None if name == OURS else ratio(comparison.ratios(name, panel.key))
    ours = f"  (uffdswap {format_ratio(found['median'])}x)" if found else ""
    _write(canvas, left + most + 6, y + _BAR - 3, panel.write(median) + ours, size=11)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From figures to pixels."""

    least: float
    most: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """Return how far from the left edge of the panel a figure is."""
        if not self.logarithmic:
            return _PANEL * value / self.most
        return _PANEL * math.log(value / self.least) / math.log(self.most / self.least)

    def ticks(self, write: Callable[[float], str]) -> list[tuple[float, str]]:
        """Return places and labels of the grid."""
        if self.logarithmic:
            count = round(math.log10(self.most / self.least))
            values = [self.least * 10**power for power in range(count + 1)]
        else:
            step = _round_step(self.most / 3)
            values = [step * number for number in range(int(self.most / step) + 1)]
        return [(self.place(value), write(value) if value else "0") for value in values]


def _round_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, no larger than `rough`.

    >>> _round_step(0.7), _round_step(234.0)
    (0.5, 200.0)
    """
    power = 10.0 ** math.floor(math.log10(rough))
    return max(step * power for step in (1, 2, 5) if step * power <= rough)


def _scale(panel: _Panel, comparisons: Sequence[Comparison]) -> _Scale | None:
    values = [
        value
        for comparison in comparisons
        for name in comparison.contenders
        for value in comparison.values(name, panel.key)
        if value
    ]
    if not values:
        return None
    if not panel.logarithmic:
        return _Scale(0, max(values), logarithmic=False)
    # Whole decades, and half a decade below the least: a bar of no length says nothing.
    least = 10.0 ** math.floor(math.log10(min(values)) - 0.5)
    return _Scale(least, 10.0 ** math.ceil(math.log10(max(values))), logarithmic=True)


# --- Canvases ------------------------------------------------------------------------------------


class _SvgCanvas:
    def __init__(self, width: float, height: float) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" font-family="DejaVu Sans, Arial, sans-serif">',
            f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
        ]

    def rect(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{colour}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
        )

    def text(  # noqa: PLR0913 # see _Canvas
        self, x: float, y: float, text: str, *, size: int, colour: str, bold: bool, anchor: str
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def finish(self) -> bytes:
        return "\n".join([*self._parts, "</svg>\n"]).encode()


class _PngCanvas:
    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure  # noqa: PLC0415 # optional, and slow to import

        self._count = 0  # of what has been drawn: later things cover earlier ones, as in SVG
        # A point is 1/72 inch: with one inch for 72 pixels, sizes mean what they mean in SVG.
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=_DPI)
        self._axes: Axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)
        self._axes.axis("off")

    def rect(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        from matplotlib.patches import Rectangle  # noqa: PLC0415 # see above

        order = self._next_order()
        bar = Rectangle((x, y), width, height, color=colour, linewidth=0, zorder=order)
        self._axes.add_patch(bar)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        order = self._next_order()
        self._axes.plot([x1, x2], [y1, y2], color=colour, linewidth=1, zorder=order)

    def text(  # noqa: PLR0913 # see _Canvas
        self, x: float, y: float, text: str, *, size: int, colour: str, bold: bool, anchor: str
    ) -> None:
        places = {"start": "left", "middle": "center", "end": "right"}
        self._axes.text(
            x,
            y,
            text.replace("$", r"\$"),
            fontsize=size,
            color=colour,
            fontweight="bold" if bold else "normal",
            horizontalalignment=places[anchor],
            verticalalignment="baseline",
            zorder=self._next_order(),
        )

    def _next_order(self) -> int:
        self._count += 1
        return self._count

    def finish(self) -> bytes:
        file = io.BytesIO()
        self._figure.savefig(file, format="png")
        return file.getvalue()
