"""Which kernels the engine would compile, noted without a GPU: nothing is launched.

Run as a program with numbers of rows it prints for each, as JSON, how many kernels the warm-up of a
graph runner compiles and which ones random steps would compile after it. Triton's interpreter must
be off.
"""

from __future__ import annotations

import json
import random
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from models.padded_runner import PaddedRunner
from models.triton_model import load_on_triton
from transformers import LlamaConfig, LlamaForCausalLM
from triton.runtime.jit import JITFunction

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.engine import Engine
from tokenbus.engine.execution import graph_runner
from tokenbus.engine.execution.constrained import ConstrainedRows
from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.kv_cache import KVCache
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.types import EngineLimits, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

# As wide as the fused layers want it, otherwise small.
CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=1,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=4096,
)
NUM_PAGES, PAGE_SIZE, MAX_MODEL_LEN, BATCH_TOKENS = 600, 64, 4096, 4096
NUM_STEPS = 60
# Plain draws mostly, so that plain steps are among them, and every rule.
DRAWS = (
    *[SamplingParams(temperature=0.6)] * 9,
    SamplingParams(temperature=0.0),
    SamplingParams(top_k=5),
    SamplingParams(top_p=0.9, min_p=0.01),
    SamplingParams(repetition_penalty=1.2, frequency_penalty=0.1),
    SamplingParams(logit_bias={3: 1.0, 4: -100.0}),
    SamplingParams(bad_words=((5, 6), (7,)), min_p=0.1),
    SamplingParams(min_tokens=1, top_k=9, presence_penalty=0.5),
    SamplingParams(logprobs=3),
    SamplingParams(logprobs=0, repetition_penalty=0.9, top_p=0.5, prompt_logprobs=2),
)


def specialised(param: Any, value: Any) -> Any:
    """Return what of an argument Triton compiles into a kernel."""
    if param.is_constexpr or value is None:
        return value
    if isinstance(value, torch.Tensor):
        is_aligned = value.data_ptr() % 16 == 0 or param.do_not_specialize_on_alignment
        return str(value.dtype), is_aligned or param.do_not_specialize
    if isinstance(value, int):
        width = 32 if -(2**31) <= value < 2**31 else 64
        return width, "any" if param.do_not_specialize else (value == 1, value % 16 == 0)
    if isinstance(value, float):
        return "float"
    return str(value.base.dtype), tuple(value.block_shape)


class LaunchKeys:
    """Takes every launch, notes what it would be compiled for, and launches nothing."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def note(self, kernel: Any, *args: Any, grid: object, warmup: bool, **named: Any) -> None:
        """Stand in for JITFunction.run."""
        del grid, warmup
        given = dict(zip([param.name for param in kernel.params], args, strict=False)) | named
        params = {param.name: param for param in kernel.params}
        parts = [
            f"{name}={specialised(params[name], value) if name in params else value}"
            for name, value in sorted(given.items())
        ]
        self.seen.add(f"{kernel.fn.__name__} {' '.join(parts)}")


def _not_multiplied(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    """Stand for a product of torch's own, whose numbers nobody looks at."""
    del bias
    return x.new_zeros(*x.shape[:-1], len(weight))


def build(max_num_seqs: int) -> tuple[graph_runner.GraphRunner, Engine]:
    """Make an engine on the CPU whose steps all run eagerly, over a graph runner's parts."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    loaded = load_on_triton(
        CONFIG,
        LlamaForCausalLM(CONFIG).state_dict(),
        max_rows=max_num_seqs,
        dtype=torch.bfloat16,
        max_model_len=MAX_MODEL_LEN,
        device=device,
    )
    model: Any = loaded.model
    attention: Any = loaded.backend.attention
    attention.min_saved_tokens = 0
    make_logits = model.logits

    def zero_logits(hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        logits: torch.Tensor = make_logits(hidden, **options)
        return logits.zero_()

    model.logits = zero_logits
    kv = KVCache(model.attention_specs, NUM_PAGES, PAGE_SIZE, torch.bfloat16, device)
    rows = RowState(max_num_seqs, MAX_MODEL_LEN // PAGE_SIZE, device)
    sampling: Any = SamplingState(max_num_seqs, CONFIG.vocab_size, device, (), fused=True)
    draw = sampling._fused.draw
    sampling._fused.draw = lambda *given: draw(*given).zero_()
    torch.cuda.graph_pool_handle = lambda: None  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda: None  # type: ignore[assignment,misc]
    torch.cuda.Stream = lambda: None  # type: ignore[assignment,misc]
    graphs = graph_runner.GraphRunner(
        model, kv, sampling, rows, sharing=attention, max_batch_tokens=BATCH_TOKENS
    )
    runner = PaddedRunner(model, kv, sampling, rows, sharing=attention)
    runner.turn = 2
    dry: Any = runner
    dry._logits = graphs._logits
    scheduler = Scheduler(
        PagePool(NUM_PAGES, PAGE_SIZE),
        ChunkSizer(BATCH_TOKENS, None),
        max_num_seqs=max_num_seqs,
        prefix_cache=True,
        on_release=runner.release,
    )
    limits = EngineLimits(
        model="dry",
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=max_num_seqs,
        eos_token_ids=(),
        vocab_size=CONFIG.vocab_size,
    )
    constrained = ConstrainedRows(None, limits, runner.containment, EngineConfig("none"))
    return graphs, Engine(runner, scheduler, constrained, limits, one_step_ahead=False)


def random_requests(source: random.Random) -> Iterator[list[Request]]:
    """Yield what arrives before each step: all lengths, some behind a prefix that they share.

    It is of 17 pages: enough for rows to read it together.
    """
    prefix = [source.randrange(CONFIG.vocab_size) for _ in range(17 * PAGE_SIZE)]
    number = count()
    for _ in range(NUM_STEPS):
        requests = []
        for _ in range(source.choice((0, 0, 1, 2, 5, 17))):
            own = [source.randrange(CONFIG.vocab_size) for _ in range(source.choice((1, 7, 90)))]
            prompt = own if source.random() < 0.5 else prefix + own
            params = replace(source.choice(DRAWS), max_tokens=source.randint(1, 12))
            requests.append(Request(next(number), tuple(prompt), params))
        yield requests


def main(max_num_seqs: int) -> None:
    """Compile ahead, warm up, run steps, print what these would have compiled."""
    warm, prepared, late = LaunchKeys(), LaunchKeys(), LaunchKeys()
    graphs, engine = build(max_num_seqs)
    JITFunction.run = lambda kernel, *args, **named: warm.note(kernel, *args, **named)
    steps = graph_runner.warm_steps(MAX_MODEL_LEN, max_num_seqs=max_num_seqs)
    graphs._compile_ahead(steps)
    JITFunction.run = lambda kernel, *args, **named: prepared.note(kernel, *args, **named)
    dry: Any = graphs
    dry._compile_ahead = lambda _steps: None
    dry._capture = dry._decode_step
    # Of draws with filters and rules the rehearsal notes the kernels: no pass is computed again.
    dry._capture_known = lambda _size, _plan: None
    dry._prompts._capture = lambda compute: compute
    dry._drafts._capture = lambda compute: partial(compute, lambda _layer: None)
    progress: list[tuple[int, int]] = []
    graphs.warm_up(lambda done, total: progress.append((done, total)))
    JITFunction.run = lambda kernel, *args, **named: late.note(kernel, *args, **named)
    for requests in random_requests(random.Random(max_num_seqs)):
        for request in requests:
            engine.add(request)
        if engine.has_work:
            engine.step()
    found = {
        "warm": len(warm.seen),
        "one by one": sorted(prepared.seen - warm.seen),
        "late": sorted(late.seen - warm.seen),
        "progress": progress,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    vars(graph_runner)["compiling_ahead"] = nullcontext
    vars(torch.nn.functional)["linear"] = _not_multiplied
    for number in sys.argv[1:]:
        main(int(number))
