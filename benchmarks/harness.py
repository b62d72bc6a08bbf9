"""What the kernel benchmarks share: timing by graph replays, ceilings, one table."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `bytes_moved` counts what the op has to read and write once."""

    section: str
    name: str
    error: float
    microseconds: float
    tb_per_s: float
    of_ceiling: float
    note: str = ""


def median_us(replay: Callable[[], object], repeats: int = 20) -> float:
    """Time `replay` by events and return the median in microseconds."""
    for _ in range(2):
        replay()
    times: list[float] = []
    for _ in range(repeats):
        # torch leaves its event class untyped.
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[repeats // 2]


def graph_us(launch: Callable[[], object], calls: int) -> float:
    """Capture `launch`, which makes `calls` calls, and return microseconds per call."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return median_us(graph.replay) / calls


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Return |out - expected| / |expected|; NaN if anything is NaN."""
    return float((out.float() - expected.float()).norm() / expected.float().norm())


class Sweep:
    """Collects rows and knows the ceiling."""

    def __init__(self) -> None:
        source = torch.randn(2**29, device=DEVICE, dtype=BF16)
        target = torch.empty_like(source)
        time = median_us(lambda: target.copy_(source))
        self.copy_tb_per_s = 2 * source.nbytes / time / 1e6
        self.rows: list[Row] = []
        print(f"{torch.cuda.get_device_name()}: copy {self.copy_tb_per_s:.2f} TB/s")

    def add(
        self, section: str, name: str, error: float, time: float, moved: int, note: str = ""
    ) -> None:
        """Record and print one case; stop at a wrong result."""
        speed = moved / time / 1e6
        row = Row(section, name, error, time, speed, speed / self.copy_tb_per_s, note)
        self.rows.append(row)
        print(
            f"{section:8} {name:34} err {error:.1e} {time:9.2f} us {speed:6.2f} TB/s"
            f" {row.of_ceiling:5.0%} {note}",
            flush=True,
        )
        if not error < 1e-2:
            sys.exit(f"{section} {name}: relative error {error}")

    def write(self, path: Path) -> None:
        """Write the ceiling and all rows as JSON."""
        table = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "copy_tb_per_s": self.copy_tb_per_s,
            "rows": [asdict(row) for row in self.rows],
        }
        path.write_text(json.dumps(table, indent=1))
