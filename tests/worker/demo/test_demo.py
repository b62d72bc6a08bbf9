"""The demo from end to end on a tiny model, as `make demo` runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.stem import forked_children

from tokenbus.producer.commands.cli import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.processes

COMMAND = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "demo"]
SMALL = ("--dtype", "float32", "--threads", "1")


def test_every_job_finishes_and_the_figures_are_written(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All 24 jobs ride together, share their prompts' pages, and are compared with the taxi."""
    file = tmp_path / "figures.json"
    asked = ["demo", "--model", str(tiny_model), "--max-tokens", "16", *SMALL, "--json", str(file)]
    with forked_children():
        code = main(asked)
    told, complained = capfd.readouterr()
    assert code == 0, complained
    figures = json.loads(file.read_text())
    assert (figures["jobs"], figures["finished"]) == (24, 24)
    assert figures["peak_running"] > 1
    assert figures["prefix_hit_rate"] > 0.3
    assert 24 <= figures["output_tokens"] <= 24 * 16
    assert figures["ratio"] > 0
    for line in ("24 of 24", "the first 9 of 24 jobs", "x as fast"):
        assert line in " ".join(told.split()), told
    assert "\x1b" not in told
    before_the_ride = told.partition("get on at once")[0]
    for phase in ("starting the process", "reading weights"):
        assert phase in before_the_ride, "a start of half a minute would be silent"
    assert "trying attention" in told


@pytest.mark.slow
def test_jobs_that_do_not_end_in_time_fail_the_demo(tiny_model: Path, tmp_path: Path) -> None:
    """The ride is bounded: past its time the demo counts what finished and ends with code 1.

    The taxi is skipped here: its figures are null and nothing is said of it.
    """
    file = tmp_path / "figures.json"
    run = subprocess.run(
        [*COMMAND, "--model", tiny_model, "--jobs", "2", "--max-tokens", "1500", *SMALL,
         "--skip-taxi", "--timeout-s", "0.01", "--json", file],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    figures = json.loads(file.read_text())
    assert figures["finished"] < figures["jobs"] == 2
    assert figures["taxi_tokens_per_s"] is None
    assert figures["ratio"] is None
    assert "taxi" not in run.stdout
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_interrupt_ends_the_demo_and_all_its_processes(tiny_model: Path) -> None:
    """Ctrl-C in the middle of the ride leaves with code 130 and no traceback."""
    with subprocess.Popen(
        [*COMMAND, "--model", tiny_model, "--max-tokens", "1500", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert any("get on at once" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        # The pipes close only when the last process that inherited them is gone.
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=PATIENCE_S) == 130
