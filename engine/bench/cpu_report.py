"""Figures of `tokenbus bench cpu`: every run, and ratios to the unit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tokenbus.engine.bench.contestants import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from tokenbus.engine.bench.order import Case

# The baseline of every ratio.
UNIT = "transformers"


@dataclass(frozen=True, slots=True)
class Run:
    """One case of one contestant in one process."""

    contestant: str
    case: str
    seconds: float
    tokens_per_s: float
    token_ids: list[list[int]]


@dataclass(slots=True)
class CpuReport:
    """All runs, in the order they were made, and what they ran on."""

    command: list[str]
    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def rates(self, contestant: str, case: str) -> list[float]:
        """Return tokens/s of every repeat."""
        return [run.tokens_per_s for run in self.runs
                if (run.contestant, run.case) == (contestant, case)]  # fmt: skip

    def ratio(self, contestant: str, case: str) -> float:
        """Return the best repeat over the best of the unit, NaN if either is missing."""
        ours, unit = self.rates(contestant, case), self.rates(UNIT, case)
        return max(ours) / max(unit) if ours and unit else float("nan")

    def equal_tokens(self, contestant: str, case: str) -> float:
        """Return the share of tokens before the first that differs from the unit's."""
        made = {run.contestant: run.token_ids for run in self.runs if run.case == case}
        if contestant not in made or UNIT not in made:
            return float("nan")
        same = total = 0
        for ours, theirs in zip(made[contestant], made[UNIT], strict=True):
            pairs = enumerate(zip(ours, theirs, strict=True))
            same += next((idx for idx, (a, b) in pairs if a != b), len(theirs))
            total += len(theirs)
        return same / total

    def to_json(self, path: Path) -> None:
        """Write everything but the token ids."""
        content: dict[str, Any] = asdict(self)
        for run in content["runs"]:
            del run["token_ids"]
        path.write_text(json.dumps(content, indent=1) + "\n")


def print_table(report: CpuReport, cases: Sequence[Case], console: Console) -> None:
    """Print best rates, ratios and how far greedy tokens agree."""
    names = list(dict.fromkeys(run.contestant for run in report.runs))
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("tokens/s, best (all)")
    for name in names:
        version = report.versions.get(PACKAGES[name].distribution, "")
        table.add_column(f"{name} {version}", justify="right")
    for case in cases:
        cells = []
        for name in names:
            rates = report.rates(name, case.name)
            every = " ".join(f"{rate:.0f}" for rate in rates)
            cells.append(f"{max(rates):.0f} ({every})")
            if name != UNIT and UNIT in names:
                cells[-1] += f"  {report.ratio(name, case.name):.2f}x"
        table.add_row(case.name, *cells)
    console.print(table)
    for name, remark in report.remarks.items():
        console.print(f"{name}: {remark}", soft_wrap=True)
    for name in names:
        if name == UNIT or UNIT not in names:
            continue
        shares = ", ".join(f"{report.equal_tokens(name, case.name):.0%}" for case in cases)
        console.print(
            f"{name}: tokens before the first that differs from {UNIT}: {shares}", soft_wrap=True
        )
