"""Drive one gateway with guidellm, a load tool of others, as its client.

    python -m venv .guidellm && .guidellm/bin/pip install guidellm
    python -P benchmarks/gateway_guidellm.py --guidellm .guidellm/bin/guidellm --streams 20

A null engine makes tokens up at `--tokens-per-s` a stream behind a real server; guidellm keeps
`--streams` requests open for `--seconds`, each of `--output-tokens`. What it has found is printed
beside the CPU time of the gateway, and kept as `--json` where that is given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tokenbus.producer.server.secret_env import without_secrets
from tokenbus.worker.bench.deployment import Deployment
from tokenbus.worker.bench.gateway.children import GatewayProcess
from tokenbus.worker.bench.gateway.command import pool_options
from tokenbus.worker.bench.gateway.options import GatewayBenchOptions

# It looks for a tokenizer and for releases of itself unless it is told that there is no network.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_NUM_PROMPTS = 1000
_LIMIT_S = 240.0


def command(args: argparse.Namespace, port: int, folder: Path) -> list[str]:
    """Return the command line of guidellm, whose prompts lie in the folder then."""
    prompts = folder / "prompts.csv"
    rows = (f'"Hello {number}!",{args.output_tokens}' for number in range(_NUM_PROMPTS))
    prompts.write_text("\n".join(["prompt,output_tokens_count", *rows]) + "\n")
    return [
        args.guidellm, "run",
        "--backend", json.dumps({
            "kind": "openai_http", "target": f"http://127.0.0.1:{port}", "model": "",
            "request_format": _PATHS[args.route],
            "extras": {"body": {"max_tokens": args.output_tokens}},
        }),
        "--profile", f"kind=concurrent,streams={args.streams}",
        "--constraint", f"kind=max_duration,seconds={args.seconds}",
        "--data", f"kind=csv_file,path={prompts}",
        "--output", f"kind=json,path={folder / 'report.json'}",
        "--disable-console-interactive",
    ]  # fmt: skip


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run guidellm against a gateway of its own; return its report and the gateway's CPU time."""
    options = GatewayBenchOptions(
        streams=args.streams, tokens_per_s=args.tokens_per_s, duration_s=args.seconds
    )
    with tempfile.TemporaryDirectory(prefix="tb-guidellm-") as name:
        folder = Path(name)
        async with (
            Deployment(pool_options(options)) as deployment,
            GatewayProcess(deployment.url, deployment.keys.pool) as gateway,
        ):
            before_s = gateway.cpu_s()
            process = await asyncio.create_subprocess_exec(
                *command(args, gateway.port, folder), env=without_secrets(os.environ) | _OFFLINE
            )
            try:
                async with asyncio.timeout(_LIMIT_S + args.seconds):
                    code = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
            used_s = gateway.cpu_s() - before_s
        if code:
            raise SystemExit(f"guidellm ended with {code}")
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {"gateway_cpu_s": used_s, "guidellm": report}


def summary(found: dict[str, Any]) -> list[str]:
    """Return what guidellm has found, and what it cost the gateway, in a few lines."""
    metrics = found["guidellm"]["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    lines = [
        f"requests: {totals['successful']} ended, {totals['errored']} failed,"
        f" {totals['incomplete']} under way at the end",
        f"CPU time of the gateway: {found['gateway_cpu_s']:.2f} s",
    ]
    for name in ("time_to_first_token_ms", "inter_token_latency_ms", "output_token_count"):
        of_ended = metrics[name]["successful"]
        p99 = of_ended["percentiles"]["p99"]
        lines.append(f"{name}: median {of_ended['median']:.2f}, p99 {p99:.2f}")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--guidellm", default="guidellm", metavar="COMMAND")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--tokens-per-s", type=float, default=20.0)
    parser.add_argument("--output-tokens", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--route", choices=sorted(_PATHS), default="chat")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = asyncio.run(measure(args))
    if args.json is not None:
        args.json.write_text(json.dumps(found))
    for line in summary(found):
        print(line)


if __name__ == "__main__":
    main()
