"""Memory of the host while a checkpoint is read: never more than a shard beside the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from models.architectures import draw_model, tiny_sizes
from models.stored_formats import StoredFormat, awq, fp8_rows, save_as
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig

from tokenbus.engine.weights.checkpoint import INDEX_NAME, SINGLE_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# What a process may take beside a shard: buffers of the allocator and of one linear in float32.
_SLACK_BYTES = 24 << 20
_FP8 = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8, "type": "float", "symmetric": True, "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "quantization_status": "compressed",
}  # fmt: skip
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_FORMATS = {
    "bf16": StoredFormat({}, lambda name, values: ({f"{name}.weight": values.bfloat16()}, values)),
    "fp8": StoredFormat(_FP8, fp8_rows),
    "awq": StoredFormat(_AWQ, partial(awq, group=128)),
}
# Reads a checkpoint as a GPU's backend does, and tells how much more than the weights it took.
_PROBE = """
import re, sys, torch
from tokenbus.engine.attention.triton_attention import TritonAttention
from tokenbus.engine.backends import TritonBackend
from tokenbus.engine.models.triton_ops import TritonOps
from tokenbus.engine.weights.loader import load_model
from tokenbus.engine.weights.readers import choose_reader

def held(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

class Read(Exception):
    pass

def stop(self, tensors):
    print(held("VmHWM") - held("VmRSS"), held("VmRSS") - before)
    raise Read

TritonOps.prepare = stop
backend = TritonBackend(device=torch.device("cpu"), attention=TritonAttention(1))
reader = choose_reader(sys.argv[2] or None, grouped=True)
torch.zeros(1 << 20).sum()
open("/proc/self/clear_refs", "w").write("5")
before = held("VmRSS")
try:
    load_model(sys.argv[1], backend, dtype="bfloat16", reader=reader)
except Read:
    pass
"""


def _in_shards(folder: Path) -> int:
    """Cut a checkpoint into a file per layer; return the bytes of the largest."""
    shards: dict[str, dict[str, Tensor]] = {}
    with safe_open(folder / SINGLE_NAME, framework="pt") as whole:
        for name in whole.keys():  # noqa: SIM118 - a safe_open is no mapping
            parts = name.split(".")
            layer = parts[2] if parts[1] == "layers" else "rest"
            shards.setdefault(f"model-{layer}.safetensors", {})[name] = whole.get_tensor(name)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    (folder / SINGLE_NAME).unlink()
    places = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
    return max((folder / file).stat().st_size for file in shards)


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "quantization"),
    [("bf16", ""), ("bf16", "fp8"), ("bf16", "int4"), ("fp8", ""), ("awq", "")],
)
def test_reading_takes_a_shard_more_than_the_weights(
    name: str, quantization: str, tmp_path: Path
) -> None:
    """A checkpoint of nine shards, as it is and rounded while it is read.

    The tensors that a GPU would hold lie in the process here, so its peak is compared with what it
    has in the end.
    """
    sizes: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 3072}
    config = LlamaConfig(**tiny_sizes(vocab_size=512, num_hidden_layers=8, **sizes))
    save_as(draw_model(config), tmp_path, _FORMATS[name])
    shard_bytes = _in_shards(tmp_path)
    told = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE, str(tmp_path), quantization],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    more_bytes, weight_bytes = map(int, told.stdout.split())
    assert weight_bytes > 2 * (shard_bytes / 2 + _SLACK_BYTES), "too small to tell"
    assert more_bytes <= shard_bytes + _SLACK_BYTES
