"""What pulling with the prefix in mind is worth: two workers, eight tenants, a prompt of each.

Every tenant has a system prompt of its own; jobs come at random times, for random tenants, the
same ones with affinity off and on. Neither worker's page pool holds all eight prompts. Hit rates
are of prompt tokens; waits are from submit to pull, by the server's clock.

    python -P benchmarks/affinity.py --jobs 240 --rate 3

With --crowd all jobs come at once to one worker whose pages hold six prompts and the own tokens of
--beside jobs: how many of them run at once, and whether any goes back and forth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.server.embedded import start_private
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.supervisor import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer

NUM_TENANTS = 8
NUM_SHARED, NUM_OWN, NUM_OUT = 2048, 48, 16
VOCAB = 512
PAGE_SIZE = 16
# Five of the eight prompts, and four jobs with their own tokens.
NUM_PAGES = 5 * NUM_SHARED // PAGE_SIZE + 48
MAX_NUM_SEQS = 4
# Of a crowd: prompts that fit, and output long enough for jobs to meet.
NUM_CROWD_PROMPTS, NUM_CROWD_OUT = 6, 80
LOOK_INTERVAL_S = 0.02
START_TIMEOUT_S = 120.0


def build_model(folder: Path) -> None:
    """Save a Llama that is small, but large enough that 2,048 tokens take a noticeable time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    build_null_tokenizer().save_pretrained(folder)


def draw_jobs(count: int, rate: float, seed: int) -> list[tuple[float, dict[str, Any]]]:
    """Draw arrival times in seconds, and the requests."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(8, VOCAB) for _ in range(NUM_SHARED)] for _ in range(NUM_TENANTS)]
    jobs = []
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(rate)
        tenant = rng.randrange(NUM_TENANTS)
        own = [rng.randrange(8, VOCAB) for _ in range(NUM_OWN)]
        jobs.append((at, {"token_ids": prompts[tenant] + own, "tenant": f"tenant-{tenant}"}))
    return jobs


@contextmanager
def workers(server: EmbeddedServer, pool: str, folder: Path, wait_ms: int) -> Iterator[list[Path]]:
    """Run two workers; give the files of their logs."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "tokenbus.producer.commands.cli",
        "worker",
        "--threads",
        "1",
    ]
    options = ["--redis", server.url, "--pool", pool, "--model", str(folder)]
    settings = {
        "AFFINITY_WAIT_MS": wait_ms,
        "NUM_PAGES": NUM_PAGES,
        "PAGE_SIZE": PAGE_SIZE,
        "MAX_NUM_SEQS": MAX_NUM_SEQS,
        "DTYPE": "float32",
        "DEVICE": "cpu",
        "LOG_FORMAT": "json",
    }
    env = os.environ | {f"TOKENBUS_{name}": str(value) for name, value in settings.items()}
    logs = [folder / f"{pool}-{number}.log" for number in range(2)]
    files = [log.open("wb") for log in logs]
    running = [subprocess.Popen([*command, *options], env=env, stderr=file) for file in files]
    try:
        yield logs
    finally:
        for process, file in zip(running, files, strict=True):
            process.terminate()
            process.wait()
            file.close()


async def ride(server: EmbeddedServer, folder: Path, pool: str, args: Any, wait_ms: int) -> None:
    """Send the jobs once, wait for all and print what the workers logged."""
    with workers(server, pool, folder, wait_ms) as logs:
        async with await AsyncClient.connect(server.url, pool=pool) as client:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    status = await read_status(client.scripts.redis, client.scripts.keys)
                    if len(status.workers) == 2:
                        break
                    await asyncio.sleep(0.1)
            started_at = asyncio.get_running_loop().time()
            async with asyncio.TaskGroup() as readers:
                for at, request in draw_jobs(args.jobs, args.rate, args.seed):
                    delay = started_at + at - asyncio.get_running_loop().time()
                    await asyncio.sleep(max(0.0, delay))
                    job = await client.submit(max_tokens=NUM_OUT, ignore_eos=True, **request)
                    readers.create_task(client.result(job))
            elapsed_s = asyncio.get_running_loop().time() - started_at
    report(wait_ms, logs, elapsed_s)


def report(wait_ms: int, logs: list[Path], elapsed_s: float) -> None:
    """Print hit rate and waits of one ride."""
    texts = [line for log in logs for line in log.read_text().splitlines()]
    lines = [json.loads(line) for line in texts if line.startswith("{")]
    done = [line for line in lines if line.get("event") == "job.finished"]
    prompt = sum(line["prompt_tokens"] for line in done)
    cached = sum(line["cached_tokens"] for line in done)
    whole = sum(line["cached_tokens"] >= NUM_SHARED - PAGE_SIZE for line in done)
    waits = sorted(line["queue_ms"] for line in done)
    firsts = sorted(line["queue_ms"] + line["ttft_ms"] for line in done)
    mode = f"on, {wait_ms} ms" if wait_ms else "off"
    print(f"affinity {mode}: {len(done)} jobs in {elapsed_s:.1f} s")
    print(f"  prompt tokens from the cache {cached / prompt:.1%}, jobs with their prefix there")
    print(f"  {whole / len(done):.1%}; queue wait p50 {quantile(waits, 0.5):.0f} ms, p95", end=" ")
    print(f"{quantile(waits, 0.95):.0f} ms; submit to first token p50", end=" ")
    print(f"{quantile(firsts, 0.5):.0f} ms, p95 {quantile(firsts, 0.95):.0f} ms", flush=True)


def quantile(ordered: list[float], share: float) -> float:
    """Return a quantile of sorted values."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def crowd(server: EmbeddedServer, folder: Path, args: Any) -> None:
    """Send all jobs at once to one worker and print how many ran at a time."""
    own_pages = -(-(NUM_OWN + NUM_CROWD_OUT) // PAGE_SIZE)
    settings = WorkerSettings.load(
        pool="crowd",
        redis_url=server.url,
        model=str(folder),
        num_pages=1 + NUM_CROWD_PROMPTS * NUM_SHARED // PAGE_SIZE + args.beside * own_pages,
        page_size=PAGE_SIZE,
        reserve_fraction=0,
        max_num_seqs=256,
        dtype="float32",
        device="cpu",
        num_threads=1,
        log_level="error",
    )
    running: list[int] = []

    async def look() -> None:
        while True:
            if worker.stats is not None:
                running.append(worker.stats.num_running)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async with (
        Worker(settings) as worker,
        await AsyncClient.connect(server.url, pool="crowd") as client,
    ):
        looking = asyncio.create_task(look())
        started_at = asyncio.get_running_loop().time()
        jobs = [
            await client.submit(max_tokens=NUM_CROWD_OUT, ignore_eos=True, **request)
            for _, request in draw_jobs(args.jobs, args.rate, args.seed)
        ]
        await asyncio.gather(*(client.result(job) for job in jobs))
        elapsed_s = asyncio.get_running_loop().time() - started_at
        looking.cancel()
        stats, metrics = worker.stats, worker.metrics
    busy = [count for count in running if count]
    print(f"crowd of {args.jobs}, pages for {NUM_CROWD_PROMPTS} prompts and {args.beside} jobs:")
    print(
        f"  {max(running)} at most and {sum(busy) / len(busy):.1f} on average ran at once,", end=""
    )
    print(f" done in {elapsed_s:.1f} s; {metrics.jobs_pulled} pulls of a job,", end=" ")
    print(f"{metrics.jobs_undone} undone, {metrics.jobs_requeued} handed back,", end=" ")
    print(f"{metrics.preemptions} preempted; at most {metrics.peak_waiting} waited in the engine;")
    if stats is not None:
        cached = stats.cached_tokens_total / (stats.cached_tokens_total + stats.prompt_tokens_total)
        print(f"  engine's prompt tokens from the cache {cached:.1%}", flush=True)


async def measure(args: argparse.Namespace) -> None:
    """Ride with affinity off and on, or with a crowd."""
    server = await asyncio.to_thread(start_private)
    try:
        with tempfile.TemporaryDirectory() as folder:
            await asyncio.to_thread(build_model, Path(folder))
            if args.crowd:
                await crowd(server, Path(folder), args)
                return
            for number, wait_ms in enumerate([0, args.affinity_wait_ms] * args.repeats):
                await ride(server, Path(folder), f"affinity-{number}", args, wait_ms)
    finally:
        await asyncio.to_thread(server.close)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=240)
    parser.add_argument("--rate", type=float, default=3.0, help="jobs per second")
    parser.add_argument("--affinity-wait-ms", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crowd", action="store_true", help="all jobs at once, one worker")
    parser.add_argument("--beside", type=int, default=16, help="jobs that fit beside the prompts")
    asyncio.run(measure(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
