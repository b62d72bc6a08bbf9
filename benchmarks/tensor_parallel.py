"""Rows of tensor parallel on the GPUs of one host: `python benchmarks/tensor_parallel.py ROW...`.

A row is a workload of `tokenbus bench engine` on a shape with random weights, in bfloat16, with two
ranks unless `--ranks` says otherwise; rows of one shape run in one engine. `equal` compares greedy
tokens in float32 with those of one rank instead, and `bits` in bfloat16: where they part first, and
how near a tie that was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenbus.engine.bench.command import run_bench
from tokenbus.engine.llm import LLM
from tokenbus.engine.types import SamplingParams

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
SHAPE_8B = _LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_70B = _LLAMA | {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
# By row: the shape and the workload.
_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "single": (SHAPE_8B, "single"),
    "batch8": (SHAPE_8B, "batch8"),
    "batch64": (SHAPE_8B, "batch64"),
    "nano256": (SHAPE_8B, "nano256"),
    "shared8x2048": (SHAPE_8B, "shared8x2048"),
    "prefill2k": (SHAPE_8B, "prefill2k"),
    "single-70b": (_70B, "single"),
}
# Nearer than this two tokens may change places with the order of a sum in bfloat16.
_NEAR_TIE = 0.05
_NUM_TOKENS = 64


def compare(model: str, num_ranks: int, dtype: str) -> int:
    """Print where greedy answers of ranks and of one rank part; return 1 if not at near ties."""
    prompts = [list(range(3 + number, 40 + 9 * number)) for number in range(8)]
    asked = SamplingParams(temperature=0.0, max_tokens=_NUM_TOKENS, ignore_eos=True, logprobs=2)
    found = []
    for size in (1, num_ranks):
        # Room for these prompts alone: the engine before may not have given its own back.
        llm = LLM(model, dtype=dtype, tensor_parallel=size, num_pages=64, max_num_seqs=8)
        outputs = llm.generate(prompts, asked, progress=False)
        found.append([(list(output.token_ids), output.logprobs) for output in outputs])
        llm.close()
    is_wrong = False
    for number, ((one, scores), (ranks, _)) in enumerate(zip(*found, strict=True)):
        pairs = enumerate(zip(one, ranks, strict=True))
        first = next((idx for idx, (own, other) in pairs if own != other), None)
        if first is None:
            print(f"prompt {number}: all {len(one)} tokens are equal")
            continue
        top = scores[first].top
        gap = top[0][1] - top[1][1]
        is_wrong |= dtype == "float32" or gap > _NEAR_TIE
        print(f"prompt {number}: token {first} differs, {gap:.4f} between the best two")
    return int(is_wrong)


def main(argv: list[str]) -> int:
    """Run rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", choices=[*_ROWS, "equal", "bits"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", help="a folder, for equal and bits")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-num-seqs", type=int, default=512, help="rows that get graphs")
    args = parser.parse_args(argv)
    if not _ROWS.keys() >= set(args.rows):
        if len(args.rows) > 1:
            parser.error("equal and bits are asked for alone")
        if args.model is None:
            parser.error("--model is needed: random weights have no clear best token")
        dtype = "float32" if args.rows[0] == "equal" else "bfloat16"
        return compare(args.model, args.ranks, dtype)
    shapes, workloads = zip(*(_ROWS[row] for row in args.rows), strict=True)
    shape = shapes[0]
    if any(other != shape for other in shapes):
        parser.error("these rows are of several shapes, which need an engine each")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        return run_bench([
            "--model", folder, "--random-weights", "--dtype", "bfloat16",
            *(f"--workload={workload}" for workload in workloads),
            "--tensor-parallel", str(args.ranks), "--repeats", str(args.repeats),
            "--max-num-seqs", str(args.max_num_seqs),
        ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
