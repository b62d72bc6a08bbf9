"""The bench against a real server, worker and readers: every mode delivers its figures."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from patience import PATIENCE_S
from workers.null_workers import leaked_keys

from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker.bench.load.readers import ReaderBroken, ReaderLink
from tokenbus.worker.bench.measure.report import Report
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.bench.run import run_load

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Event
    from tokenbus.worker.bench.deployment import Deployment
    from tokenbus.worker.bench.measure.figures import Figures

pytestmark = pytest.mark.processes

# A pipe of the kernel holds 64 KiB, and a transport buffers as much.
MORE_THAN_A_PIPE = 100_000
on_stage = pytest.mark.asyncio(loop_scope="module")

# Short jobs: a row of the worker ends five a second.
JOB: dict[str, Any] = {"prompt_tokens": (8, 24), "output_tokens": (6, 10), "drain_s": 30.0}
_run_idx = iter(range(1000))


async def _run(deployment: Deployment, **values: Any) -> Figures:
    """Run one load and check what holds for every healthy run."""
    options = BenchOptions(**(JOB | values), run_idx=next(_run_idx))
    return await run_load(deployment, options, lambda _: None)


def _assert_sound(figures: Figures, num_jobs: int) -> None:
    assert figures.outcomes == {"length": num_jobs}
    assert (figures.num_faults, figures.num_lost) == (0, 0), figures.faults
    assert figures.publish_lag_ms.count == figures.output_tokens == figures.itl_ms.count + num_jobs
    assert figures.ttft_ms.count == figures.e2e_ms.count == num_jobs
    assert 0 < figures.publish_lag_ms.p50 <= figures.e2e_ms.max
    assert figures.tokens_per_log_entry >= 1
    assert all(figures.cpu_us_per_token[kind] > 0 for kind in ("server", "worker", "reader"))
    assert sum(rate for _, rate in figures.tokens_by_second) == figures.output_tokens


@on_stage
async def test_burst_waits_in_the_queue_by_priority(deployment: Deployment) -> None:
    """In a burst over capacity jobs wait, the first priority less than the last; all end.

    Each arrives at one of the two readers.
    """
    figures = await _run(
        deployment, arrival="burst", rate=4, burst_factor=12, calm_s=1, burst_s=1, duration_s=2,
        priorities=(0.2, 0, 0.8), tenants=2, readers=2,
    )  # fmt: skip
    _assert_sound(figures, sum(group.jobs for group in figures.by_tenant.values()))
    assert figures.peak_waiting_jobs > 4
    assert set(figures.by_tenant) == {"tenant-0", "tenant-1"}
    assert set(figures.by_phase) == {"calm", "burst"}
    groups = figures.by_phase_and_priority
    assert groups["burst/0"].ttft_ms.p50 < groups["burst/2"].ttft_ms.p50


@on_stage
@pytest.mark.slow
async def test_closed_loop_keeps_its_users_busy(deployment: Deployment) -> None:
    """Four users on four rows: never more jobs than users, and one after the other."""
    figures = await _run(deployment, arrival="closed", users=4, duration_s=1.5, ramp_s=0.2)
    _assert_sound(figures, figures.ttft_ms.count)
    assert figures.ttft_ms.count > 8
    assert figures.peak_waiting_jobs <= 4
    assert figures.steady_tokens_per_s > 0


@on_stage
async def test_token_that_is_none_of_the_jobs_is_found(deployment: Deployment) -> None:
    """A stranger publishes a token ahead of the worker: the reader's check names it."""
    async with make_redis(deployment.url) as stranger, stranger.pubsub() as pubsub:
        await pubsub.psubscribe(deployment.keys.log_prefix(0) + "*")

        async def forge() -> None:
            # On a busy machine the worker may be ahead of a forged token, but not of all, of which
            # there are as many as come in seconds.
            async for message in pubsub.listen():
                if message["type"] != "pmessage":
                    continue
                event = parse_message(message["data"])
                if event.finish is None and event.ids and 256 not in event.ids:
                    forged = msgspec.json.encode(_following(event).dump())
                    await stranger.publish(message["channel"], forged)

        forging = asyncio.create_task(forge())
        figures = await _run(deployment, arrival="at-once", jobs=2, output_tokens=(100, 100))
        forging.cancel()
        await asyncio.wait([forging])
    assert 1 <= figures.num_faults <= 2
    assert all(re.search(r"token \d+ has another", fault) for fault in figures.faults)


def _following(event: Event) -> Event:
    """Make up the token that comes next."""
    end = event.ends[-1]
    return msgspec.structs.replace(
        event, start=event.to + 1, to=event.to + 1, text=" lie", ids=(256,), ends=(end + 4,)
    )


@on_stage
@pytest.mark.parametrize(
    "results",
    [
        pytest.param(False, id="streams"),
        pytest.param(True, id="results", marks=pytest.mark.slow),
    ],
)
async def test_channels_of_jobs_carry_every_event(deployment: Deployment, results: bool) -> None:
    """Plain readers of half of the jobs see what their own clients do, however these read.

    The jobs are messages, and have a grammar that the null engine does not heed.
    """
    figures = await _run(
        deployment, arrival="at-once", jobs=12, results=results, plain_readers=50.0,
        messages=True, choice=3,
    )  # fmt: skip
    assert figures.outcomes == {"length": 12}
    assert (figures.num_faults, figures.num_lost) == (0, 0), figures.faults
    assert figures.plain_jobs == 6
    assert figures.plain_events >= 12
    assert figures.prompt_tokens > 12 * 8
    assert figures.cpu_us_per_job["worker"] > figures.cpu_us_per_token["worker"] > 0


@on_stage
@pytest.mark.slow
async def test_channel_that_says_something_else_is_found(deployment: Deployment) -> None:
    """A stranger writes to the channel of a job that a plain reader follows: its check tells."""
    async with make_redis(deployment.url) as stranger, stranger.pubsub() as pubsub:
        await pubsub.psubscribe(deployment.keys.log_prefix(0) + "*")

        async def forge() -> None:
            async for message in pubsub.listen():
                if message["type"] == "pmessage" and b"plain-" in message["channel"]:
                    # Once more: its job's own client drops it.
                    await stranger.publish(message["channel"], message["data"])

        forging = asyncio.create_task(forge())
        figures = await _run(deployment, arrival="at-once", jobs=2, plain_readers=50.0)
        forging.cancel()
        await asyncio.wait([forging])
    assert figures.num_faults == 1
    assert "on its own channel: event" in figures.faults[0]


@on_stage
@pytest.mark.slow
async def test_job_that_does_not_end_in_time_counts_as_lost(deployment: Deployment) -> None:
    """What is under way at the limit is reported, cancelled, and gone from the pool."""
    figures = await _run(
        deployment, arrival="at-once", jobs=3, output_tokens=(4000, 4000), drain_s=1
    )
    assert figures.outcomes == {"unfinished": 3}
    assert figures.num_lost == 3
    scripts = Scripts(deployment.redis, deployment.keys.pool)
    async with asyncio.timeout(PATIENCE_S):
        while await _is_busy(deployment, scripts):  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.05)


async def _is_busy(deployment: Deployment, scripts: Scripts) -> bool:
    held = (await read_status(deployment.redis, deployment.keys)).held_jobs
    return bool(held or await leaked_keys(scripts))


@on_stage
async def test_refused_clients_come_back(deployment: Deployment) -> None:
    """Over the bound jobs are refused; those who wait as told are accepted later, none is lost."""
    figures = await _run(
        deployment, arrival="at-once", jobs=24, readers=2, retries=50, max_pool_tokens=250
    )
    _assert_sound(figures, 24)
    assert figures.refusals.refused_at_first > 0
    assert sum(figures.refusals.accepted_at) == figures.refusals.refused_at_first
    assert figures.refusals.given_up == 0
    assert figures.peak_pages_used > 0


def test_command_writes_its_report(tmp_path: Path) -> None:
    """The command runs a trace by itself, prints its figures, and leaves JSON and a page."""
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp_ms": 50 * n, "input_length": 70, "output_length": 20} for n in range(20)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    out = {name: tmp_path / f"figures.{name}" for name in ("json", "html")}
    run = subprocess.run(
        [
            sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "bench", "pool",
            "--trace", str(trace), "--tokens-per-s", "100", "--length-scale", "2",
            "--json", str(out["json"]), "--html", str(out["html"]),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "20 length" in run.stdout
    report = msgspec.json.decode(out["json"].read_bytes(), type=Report)
    assert report.is_sound
    assert report.runs[0].output_tokens == 200
    assert report.machine["cores"]
    assert "<svg" in out["html"].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [(), ("--messages", "--results"), ("--choice", "20", "--output-tokens", "3")],
    ids=["ids", "messages", "choice"],
)
def test_tax_of_a_model_with_a_generated_tokenizer(tmp_path: Path, argv: tuple[str, ...]) -> None:
    """The same jobs run offline and through the queue, with text for every id; both are told.

    Messages are the prompts that their template makes of them in both; a label is a job's end.
    """
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=2000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    ).save_pretrained(tmp_path)  # fmt: skip
    out = tmp_path / "figures.json"
    run = subprocess.run(
        [
            sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "bench", "pool",
            "--model", str(tmp_path), "--random-weights", "--generate-tokenizer",
            "--dtype", "float32", "--num-pages", "400", "--max-num-seqs", "16",
            "--threads", "1", "--offline-compare", "--jobs", "20", "--repeats", "2",
            "--prompt-tokens", "10-60", "--output-tokens", "20-40", "--json", str(out), *argv,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    report = msgspec.json.decode(out.read_bytes(), type=Report)
    assert report.offline is not None
    assert len(report.offline.tokens_per_s) == len(report.runs) == 2
    assert report.offline.output_tokens == report.runs[0].output_tokens
    assert report.tax == pytest.approx(
        report.best.tokens_per_s / max(report.offline.tokens_per_s), abs=1e-3
    )
    assert report.offline.jobs == 20
    assert f"share of offline: best {report.tax:.1%}" in run.stdout.splitlines()[-1]


async def test_reader_that_is_killed_is_told_with_its_signal() -> None:
    """Whoever reads the message knows whether to look for a mistake or for who has killed it."""
    process = await asyncio.create_subprocess_exec("sleep", "60", stdout=asyncio.subprocess.PIPE)
    reader = ReaderLink(process)
    process.kill()
    with pytest.raises(ReaderBroken, match="SIGKILL"):
        await reader.receive()


@on_stage
async def test_workers_of_a_bench_have_no_url_in_their_environment(deployment: Deployment) -> None:
    """It may hold a password, and lands in crash reports."""
    for pid in deployment.worker_pids:
        told = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
        assert deployment.url.encode() not in told


def test_report_that_was_drained_has_left_its_process() -> None:
    """A reader ends with its last report: the bench may be slow to read it, and gets all of it."""
    child = (
        "import asyncio\n"
        "from tokenbus.worker.bench.load.pipes import open_pipes\n"
        "async def main():\n"
        "    _, writer = await open_pipes()\n"
        f"    writer.write(bytes({MORE_THAN_A_PIPE}))\n"
        "    await writer.drain()\n"
        "asyncio.run(main())\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-P", "-c", child], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        # It is at its last report, and stays there until somebody reads.
        received = process.stdout.read(1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        assert len(received + process.stdout.read()) == MORE_THAN_A_PIPE
