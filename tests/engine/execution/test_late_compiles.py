"""Nothing is compiled once an engine has warmed up: a kernel that comes late holds everyone up."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from models.launch_keys import CONFIG, MAX_MODEL_LEN, random_requests
from models.triton_model import load_on_triton
from patience import PATIENCE_S
from transformers import LlamaForCausalLM

from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.execution.graph_runner import warm_steps

PROGRAM = Path(__file__).parents[2] / "support" / "models" / "launch_keys.py"


@pytest.mark.parametrize(
    "num_rows", [(64,), pytest.param((1, 4, 300), marks=pytest.mark.slow)], ids=str
)
def test_steps_ask_for_kernels_of_the_warm_up_only(num_rows: tuple[int, ...]) -> None:
    """Whatever comes together in a step, or in what the start captures, is compiled ahead."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(PROGRAM.parents[1]), env.get("PYTHONPATH")))
    )
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), *map(str, num_rows)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["late"] for each in found] == [[]] * len(num_rows)
    assert [each["one by one"] for each in found] == [[]] * len(num_rows)
    for each in found:
        total = len(each["progress"])
        assert each["progress"] == [[done, total] for done in range(1, total + 1)]
    assert all(each["warm"] > 10 for each in found)


@pytest.mark.parametrize("max_num_seqs", [1, 2, 4, 16, 17, 512])
def test_warm_up_takes_no_more_sequences_than_an_engine_has(max_num_seqs: int) -> None:
    """A step of the warm-up holds a prompt and the rows beside it: the buffers end at all rows."""
    steps = warm_steps(4096, max_num_seqs=max_num_seqs)
    assert max(num_tokens for num_tokens, _ in steps) <= 4096
    assert max(num_rows for _, num_rows in steps) + 1 <= max_num_seqs
    assert len(steps) > 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_steps_compile_nothing() -> None:
    """The same on a GPU, with graphs, as Triton itself counts."""
    torch.manual_seed(0)
    weights = LlamaForCausalLM(CONFIG).state_dict()
    loaded = load_on_triton(
        CONFIG, weights, max_rows=64, dtype=torch.bfloat16, max_model_len=MAX_MODEL_LEN
    )
    engine = engine_for(loaded, EngineConfig("tiny", num_pages=400, max_num_seqs=64))
    compiled: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **given: compiled.append(given["repr"])
    try:
        for requests in random_requests(random.Random(1)):
            for request in requests:
                engine.add(request)
            if engine.has_work:
                engine.step()
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None
    assert compiled == []
