"""Workers on a GPU each, one queue: `python benchmarks/replicas.py --workers 2 --retail FILE`.

Three loads in turn, with two workers twice as much of each as with one, so that the rows of both
can be compared: nano's mix, 256 sequences for every worker at once; customers of a retail agent
behind one policy; and jobs of 24 groups for every worker with a prompt of their own each: where
every worker computed the prompts of all groups, twice the share of one would miss the caches. The
model is a Llama of 8B with random weights, or `--model`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tensor_parallel import SHAPE_8B

from tokenbus.engine.text.generated_tokenizer import clothe, vocab_size_of
from tokenbus.worker import logs
from tokenbus.worker.bench.deployment import Deployment
from tokenbus.worker.bench.options import RETAIL_TENANTS, BenchOptions
from tokenbus.worker.bench.run import run_load

if TYPE_CHECKING:
    from tokenbus.worker.bench.measure.figures import Figures

# Of a worker; jobs of retail and of the groups a second, and how long they come.
_NUM_SEQS = 256
_RETAIL_RATE, _GROUPS_RATE = 24.0, 16.0
_DURATION_S, _WARM_UP_S = 15.0, 5.0
_NUM_GROUPS, _SHARED_TOKENS = 24, 2048


def loads(base: BenchOptions, retail: Path, repeats: int) -> dict[str, BenchOptions]:
    """Return the loads by name, each for all workers together."""
    paced = base.replace(arrival="poisson", duration_s=_DURATION_S, warm_up_s=_WARM_UP_S)
    found = {
        f"nano {run + 1}": base.replace(
            arrival="at-once", workload=f"nano{_NUM_SEQS * base.workers}", run_idx=run
        )
        for run in range(repeats)
    }
    found["retail"] = paced.replace(
        workload="retail", retail_file=str(retail), rate=_RETAIL_RATE * base.workers,
        tenants=RETAIL_TENANTS, output_tokens=(50, 250), run_idx=repeats,
    )  # fmt: skip
    found["groups"] = paced.replace(
        groups=_NUM_GROUPS * base.workers, shared_tokens=_SHARED_TOKENS, prompt_tokens=(60, 60),
        output_tokens=(60, 60), rate=_GROUPS_RATE * base.workers, run_idx=repeats + 1,
    )  # fmt: skip
    return found


def shown(name: str, found: Figures) -> str:
    """Return a line of figures."""
    ttft = found.ttft_ms
    return (
        f"{name:>8}  {found.tokens_per_s:.0f} tokens/s (steady {found.steady_tokens_per_s:.0f}),"
        f" {found.jobs_per_s:.1f} jobs/s in {found.duration_s:.2f} s; TTFT ms p50 {ttft.p50:.1f}"
        f" p95 {ttft.p95:.1f} p99 {ttft.p99:.1f};"
        f" cached {found.cached_tokens / max(1, found.prompt_tokens):.2%};"
        f" {found.outcomes}, lost {found.num_lost}, at most {found.peak_waiting_jobs} waited"
    )


async def measure(base: BenchOptions, retail: Path, repeats: int) -> None:
    """Run all loads through one deployment and print a line of each."""
    async with Deployment(base) as deployment:
        for name, options in loads(base, retail, repeats).items():
            found = await run_load(deployment, options, lambda _: None)
            print(shown(name, found), flush=True)


def main(argv: list[str]) -> int:
    """Run the loads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, choices=[1, 2], default=2)
    parser.add_argument("--retail", type=Path, required=True, help="the retail agent's file")
    parser.add_argument("--model", type=Path, help="a folder with a config.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=2, help="runs of nano's mix")
    parser.add_argument("--readers", type=int, default=3, help="reader processes")
    args = parser.parse_args(argv)
    logs.configure("warning", "console")
    with tempfile.TemporaryDirectory() as made:
        bare, clothed = Path(made) / "bare", Path(made) / "clothed"
        bare.mkdir()
        clothed.mkdir()
        (bare / "config.json").write_text(json.dumps(SHAPE_8B))
        clothe(args.model or bare, clothed, with_weights=False)
        worker: dict[str, str | int | float | bool] = {
            "model": str(clothed), "random_weights": True, "device": args.device,
            "max_num_seqs": _NUM_SEQS, "max_model_len": 8192,
        }  # fmt: skip
        base = BenchOptions(
            engine="paged", worker=worker, workers=args.workers, readers=args.readers,
            check=False, lag=False, vocab_size=vocab_size_of(clothed),
        )  # fmt: skip
        asyncio.run(measure(base, args.retail, args.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
