"""Terminal output: text that a model wrote, and the progress of slow steps."""

from __future__ import annotations

import sys
import time

_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
_MIN_REDRAW_S = 0.1
# Without a terminal a line is printed per step and per quarter of it.
_LINES_PER_STEP = 4
_BAR_WIDTH = 30


def printable(text: str) -> str:
    """Drop control characters other than line feed and tab, so that no terminal obeys them."""
    return text.translate(_CONTROLS)


class ProgressLine:
    """One line on standard error that is redrawn in a terminal and repeated elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_terminal = sys.stderr.isatty()
        self._last: tuple[str, int] | None = None
        self._drawn_s = 0.0

    def __call__(self, step: str, share: float) -> None:
        """Show what is going on and how much of it all is done, 0 to 1."""
        if self._is_terminal:
            now_s = time.monotonic()
            if now_s - self._drawn_s < _MIN_REDRAW_S and share < 1:
                return
            self._drawn_s = now_s
            bar = "#" * round(share * _BAR_WIDTH)
            end = "\n" if share >= 1 else ""
            line = f"\r{self._name}: [{bar:<{_BAR_WIDTH}}] {share:4.0%} {step:<12}"
            print(line, end=end, file=sys.stderr, flush=True)
            return
        mark = (step, int(share * _LINES_PER_STEP))
        if mark != self._last:
            self._last = mark
            print(f"{self._name}: {share:4.0%} {step}", file=sys.stderr, flush=True)
