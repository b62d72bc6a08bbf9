"""The taxi: the same jobs through `transformers` `generate`, one at a time, in its own process.

The process reads one `TaxiOrder` as JSON on its standard input and prints one JSON object a line:
`{"attention": ..., "tokens_per_s": ...}` per setting tried, `{"job": i, "tokens": n, "seconds": s}`
per job, and at the end the whole ride. The clock covers `generate` alone: loading, tokenising and
warming up are left out, as they are for the bus.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.worker.errors import WorkerError
from tokenbus.worker.process.env import compute_env

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ATTENTIONS = ("sdpa", "eager")
# Long enough that the cache grows as it does in a job, short enough to try each setting twice:
# one try alone picks the slower one when something else runs at that moment.
NUM_TRIAL_TOKENS = 32
NUM_TRIALS = 2
MAX_LAST_WORDS = 2000


class TaxiBrokeDown(WorkerError):
    """The process of the taxi ended without a result; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class TaxiOrder:
    """What to drive: chats in the order given, greedy, with the bus's stop rule."""

    model: str
    chats: list[list[dict[str, str]]]
    max_tokens: int
    num_threads: int
    dtype: str


@dataclass(frozen=True, slots=True)
class TaxiRide:
    """What came out; `attention` is the faster of the settings tried."""

    attention: str
    num_jobs: int
    output_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens divided by the time spent in `generate`."""
        return self.output_tokens / self.seconds


def drive_taxi(
    order: TaxiOrder,
    *,
    on_job: Callable[[int, int, float], None],
    on_trial: Callable[[str, float], None],
) -> TaxiRide:
    """Run the order in a new process; call `on_job(job, tokens, seconds)` as jobs end.

    Before the first job each setting is tried: `on_trial(attention, tokens_per_s)`.
    Raises: TaxiBrokeDown if the process ends without a result.
    """
    command = [sys.executable, "-P", "-m", "tokenbus.worker.demo.taxi"]
    # Standard error goes to a file: a pipe that nobody reads until the end would block the ride.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=compute_env(),
        ) as process,
    ):
        try:
            ride = _follow(process, order, on_job, on_trial)
        finally:
            process.kill()
        if ride is None:
            stderr.seek(0)
            raise TaxiBrokeDown(stderr.read().strip()[-MAX_LAST_WORDS:])
        return ride


def _follow(
    process: subprocess.Popen[str],
    order: TaxiOrder,
    on_job: Callable[[int, int, float], None],
    on_trial: Callable[[str, float], None],
) -> TaxiRide | None:
    """Hand over the order and report jobs until the ride is over, or the process is."""
    assert process.stdin
    assert process.stdout
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(asdict(order)))
    for line in process.stdout:
        record: dict[str, Any] = json.loads(line)
        if "attention" in record and "num_jobs" not in record:
            on_trial(record["attention"], record["tokens_per_s"])
        elif "job" in record:
            on_job(record["job"], record["tokens"], record["seconds"])
        elif "num_jobs" in record:
            return TaxiRide(**record)
    return None


def _generate(model: Any, input_ids: Tensor, max_tokens: int) -> tuple[int, float]:
    """Generate greedily; return the number of new tokens, the stop token included, and seconds."""
    start = time.monotonic()
    output = model.generate(
        input_ids, attention_mask=input_ids.new_ones(input_ids.shape), max_new_tokens=max_tokens,
        do_sample=False,
    )  # fmt: skip
    return output.shape[1] - input_ids.shape[1], time.monotonic() - start


def _main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    order = TaxiOrder(**json.load(sys.stdin))
    torch.set_num_threads(order.num_threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(order.model, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        order.model, trust_remote_code=False, dtype=getattr(torch, order.dtype)
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    prompts = [
        tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"].to(model.device)
        for chat in order.chats
    ]
    speed: dict[str, float] = {}
    for attention in ATTENTIONS * NUM_TRIALS:
        model.set_attn_implementation(attention)
        _generate(model, prompts[0], 4)
        num_tokens, seconds = _generate(model, prompts[0], NUM_TRIAL_TOKENS)
        speed[attention] = max(num_tokens / seconds, speed.get(attention, 0.0))
        print(json.dumps({"attention": attention, "tokens_per_s": speed[attention]}), flush=True)
    best = max(speed, key=lambda attention: speed[attention])
    model.set_attn_implementation(best)
    total, elapsed = 0, 0.0
    for job, prompt in enumerate(prompts):
        num_tokens, seconds = _generate(model, prompt, order.max_tokens)
        total, elapsed = total + num_tokens, elapsed + seconds
        print(json.dumps({"job": job, "tokens": num_tokens, "seconds": seconds}), flush=True)
    ride = TaxiRide(best, len(prompts), total, elapsed)
    print(json.dumps(asdict(ride)), flush=True)


if __name__ == "__main__":
    _main()
