"""Terminal output: text that a model wrote, hints, and the progress of slow steps."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time

_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)}
# What turns the direction of text around, or hides in it: marks, embeddings, overrides, isolates,
# separators of lines, invisible operators, tags, and halves of surrogate pairs.
_UNSEEN = {
    *(0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
    *range(0xD800, 0xE000),
}


def _escape(code: int) -> str:
    """Write a character as JSON does, so that JSON remains JSON."""
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


_ESCAPES = {code: _escape(code) for code in _CONTROLS | _UNSEEN}
_LINES = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}
_MIN_REDRAW_S = 0.1
# Without a terminal a line is printed per step and per quarter of it.
_LINES_PER_STEP = 4
_BAR_WIDTH = 30


def visible(text: str, *, lines: bool = False) -> str:
    r"""Escape what a terminal would obey or hide as `\uXXXX`; with `lines` not line feed and tab.

    For everything that a tenant, a model or a server wrote. JSON means the same before and after.
    """
    return text.translate(_LINES if lines else _ESCAPES)


def say(text: str, end: str = "\n") -> None:
    """Write to standard error, where that is possible.

    What has to be done goes on where the log's disk is full or nobody reads it any more.
    """
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def open_standard_streams() -> None:
    """Give a process that was started without standard input, output or error an empty one.

    The first files and sockets that it opens would get their numbers, and be written to by whatever
    prints. Characters that an output cannot carry are escaped.
    """
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, so this one.
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_terminal(stream: object) -> bool:
    """Tell whether a person sees what is written to a stream, which may be closed or none."""
    asked = getattr(stream, "isatty", None)
    try:
        return asked is not None and bool(asked())
    except ValueError:
        return False


def has_colours(stream: object) -> bool:
    """Tell whether a stream shows colours: a terminal that can, and nobody asked for none."""
    return (
        is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


class ProgressLine:
    """One line on standard error that is redrawn in a terminal and repeated elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_terminal = is_terminal(sys.stderr)
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
            say(line, end)
            return
        mark = (step, int(share * _LINES_PER_STEP))
        if mark != self._last:
            self._last = mark
            say(f"{self._name}: {share:4.0%} {step}")
