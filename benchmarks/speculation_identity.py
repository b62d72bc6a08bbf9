"""Identity: thousands of jobs with drafts and without, whose tokens have to be the same.

Usage: python benchmarks/speculation_identity.py --agent tau_bench_retail.json [--jobs 2000]
       [--shard 0/8] [--dtype float32] [--model smollm2-135m] [--json FILE]

Every job runs undisturbed in an engine without speculation, and then in one that speculates and
admits more than its small pool holds, so that sequences are preempted. There a third of the jobs
is parked once, handed back and taken on again by the same engine, and a third is taken over by
another engine. Jobs are calls of a retail agent (tau-bench, MIT), schemas, support answers and
product texts; draws are greedy, or of temperature 1 with all filters, some with penalties, biases
and bad words, three choices, stop strings or log-probabilities.

Where two answers part, the step is taken again alone, and its margin is told, see `draw_margin`:
how much a logit has to move for the greedy token of either run, a border between tokens or one of
the filters for a drawn one. Margins of up to 1e-5 are near ties; log-probabilities have to agree
within 1e-4.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from draw_margin import margin_of
from speculation import support_requests, tool_requests

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.sampling.random_draw import uniform
from tokenbus.engine.scheduling.output_estimator import OutputEstimator
from tokenbus.engine.speculation.planner import DraftPlanner
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import FinishReason, Request, SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.demo.jobs import CONTENT
from tokenbus.worker.jobs.prompt import PromptPreparer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from draw_margin import Margin

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.types import TokenDelta, TokenLogprobs
    from tokenbus.worker.held.prepared_job import PreparedJob

NEAR_TIE, LOGPROB_ERROR = 1e-5, 1e-4
# Rows of a step; the pool of drafts holds some of them only.
NUM_ROWS, PAGE_SIZE = 24, 16
MAX_TOKENS = 56
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"product": {"type": "string", "maxLength": 40},
     "size": {"enum": ["small", "medium", "large", "extra large"]},
     "note": {"type": "string", "maxLength": 60}, "in_stock": {"type": "boolean"}},
    {"intent": {"enum": ["return", "exchange", "cancel", "question", "complaint"]},
     "order_id": {"type": "string", "pattern": "^#W[0-9]{7}$"},
     "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
     "summary": {"type": "string", "maxLength": 80}},
    {"items": {"type": "array", "minItems": 1, "maxItems": 3,
               "items": {"type": "object", "properties": {"name": {"type": "string"},
                                                          "price": {"type": "number"}},
                         "required": ["name", "price"], "additionalProperties": False}},
     "currency": {"const": "GBP"}},
)  # fmt: skip
PRODUCTS = ("Fenn 2 tent", "Crag boots", "Ember stove", "Kite rain jacket", "Spoke panniers")
FILTERED = SamplingParams(temperature=1.0, top_k=50, top_p=0.92, min_p=0.02)
ASKED = (
    SamplingParams(temperature=0.0),
    FILTERED,
    replace(FILTERED, repetition_penalty=1.1, presence_penalty=0.4, frequency_penalty=0.3),
    replace(FILTERED, n=3),
    replace(FILTERED, stop=(". ", "\n", '": ')),
    replace(FILTERED, logprobs=2),
    replace(SamplingParams(temperature=0.0), n=3, frequency_penalty=0.5, logprobs=0),
    replace(FILTERED, logit_bias={28: 1.0, 30: -2.0}, bad_words=((281, 253), (339,)), min_tokens=6),
)
DISTURBANCES = ("none", "parked", "taken over")


def content_requests(max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield orders of texts, of which two with one number are alike."""
    for number in range(10**6):
        product = PRODUCTS[number % len(PRODUCTS)]
        kind = ("a product text", "a subject line", "a social post")[number % 3]
        yield {
            "messages": [
                {"role": "system", "content": CONTENT},
                {"role": "user", "content": f"Write {kind} for the {product}, no. {number // 15}."},
            ],
            "max_tokens": max_tokens,
        }


def schema_requests(max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield support questions to be answered by an object of a schema."""
    for number, fields in enumerate(support_requests(max_tokens)):
        properties = SCHEMAS[number % len(SCHEMAS)]
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:2],
            "additionalProperties": False,
        }
        named = {"name": "answer", "schema": schema}
        yield {**fields, "response_format": {"type": "json_schema", "json_schema": named}}


def jobs_of(preparer: PromptPreparer, agent: Path, num_jobs: int, shard: tuple[int, int]) -> Any:
    """Return a shard of the jobs: by number its prompt and what is asked for."""
    sources = (
        tool_requests(agent, MAX_TOKENS),
        schema_requests(MAX_TOKENS),
        support_requests(MAX_TOKENS),
        content_requests(MAX_TOKENS),
    )
    jobs: dict[int, PreparedJob] = {}
    for number in range(num_jobs):
        fields = next(sources[number % len(sources)], None)
        if fields is None:
            # There are no more customers: another question of the same number.
            fields = next(sources[2])
        if number % shard[1] != shard[0]:
            continue
        job = preparer.tokenise(
            JobRequest.of_fields({**fields, "temperature": 1.0, "seed": number})
        )
        asked = ASKED[number // len(sources) % len(ASKED)]
        drawn = {
            name: getattr(asked, name)
            for name in ("n", "min_tokens", "temperature", "top_k", "top_p", "min_p", "stop",
                         "repetition_penalty", "presence_penalty", "frequency_penalty",
                         "logit_bias", "bad_words", "logprobs")
        }  # fmt: skip
        jobs[number] = replace(job, params=replace(job.params, **drawn))
    return jobs


class ShortAnswers(OutputEstimator):
    """Expects a token of each answer, so that more are admitted than there are pages for."""

    def expected(self, lane: str, max_tokens: int) -> int:  # noqa: ARG002
        """Return 1."""
        return 1


@dataclass(slots=True)
class Choice:
    """What came of one choice; `text` watches its stop strings."""

    text: ChoiceText
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    reason: str = ""

    def take(self, delta: TokenDelta) -> bool:
        """Add a delta, up to a stop string; tell whether one was met."""
        is_last = delta.finish_reason is not None
        released = self.text.push(
            delta.token_ids, is_last=is_last, stop_token_id=delta.stop_token_id
        )
        num_kept = min(len(delta.token_ids), len(released.ids))
        self.ids += delta.token_ids[:num_kept]
        self.logprobs += delta.logprobs[:num_kept]
        if released.stopped_by is not None:
            self.reason = f"stopped by {released.stopped_by!r}"
        elif is_last:
            self.reason = str(delta.finish_reason)
        return released.stopped_by is not None


@dataclass(slots=True)
class Ride:
    """A job on board of an engine, from which it moves to another when it has so many tokens."""

    number: int
    engine_idx: int
    choices: list[Choice]
    moves_at: int | None


class Player:
    """Runs jobs in engines, some of which move amid their answers."""

    def __init__(self, engines: Sequence[Engine], jobs: dict[int, PreparedJob]) -> None:
        self._engines, self._jobs = engines, jobs
        self._tokenizer: Any = engines[0]._constrained._tokenizer
        self._rides: dict[int, Ride] = {}
        self._next_id = 0
        self.counts: Counter[str] = Counter()

    def run(self, *, disturbed: bool) -> dict[int, list[Choice]]:
        """Return the choices of all jobs."""
        waiting, found = deque(self._jobs), {}
        while waiting or self._rides:
            while waiting and len(self._rides) < NUM_ROWS:
                ride = self._board(waiting.popleft(), disturbed=disturbed)
                found[ride.number] = ride.choices
            for idx, engine in enumerate(self._engines):
                if engine.has_work:
                    for delta in engine.step().deltas:
                        self._take(idx, delta)
        for engine in self._engines:
            engine.check_integrity()
            self.counts["preempted"] += engine.stats().preemptions_total
        return found

    def _board(self, number: int, *, disturbed: bool) -> Ride:
        job, source = self._jobs[number], Random(number)
        texts = [
            ChoiceText(self._tokenizer, job.prompt_ids, job.params, job.shown_ids)
            for _ in range(job.params.n)
        ]
        what = DISTURBANCES[number % len(DISTURBANCES)] if disturbed else DISTURBANCES[0]
        moves_at = source.randint(1, MAX_TOKENS - 8) if what != DISTURBANCES[0] else None
        ride = Ride(number, 0, [Choice(text) for text in texts], moves_at)
        self._add(ride)
        return ride

    def _add(self, ride: Ride) -> None:
        job, self._next_id = self._jobs[ride.number], self._next_id + 1
        self._rides[self._next_id] = ride
        self._engines[ride.engine_idx].add(
            Request(
                self._next_id,
                job.prompt_ids,
                replace(job.params, stop=()),
                cache_salt="shop",
                lane="1:shop",
                resumed_ids=tuple(tuple(choice.ids) for choice in ride.choices),
                done_choices=tuple(idx for idx, choice in enumerate(ride.choices) if choice.reason),
            )
        )

    def _take(self, engine_idx: int, delta: TokenDelta) -> None:
        ride = self._rides.get(delta.request_id)
        if ride is None or delta.finish_reason is FinishReason.ABORTED:
            return
        if delta.error is not None:
            raise RuntimeError(f"job {ride.number}: {delta.error}")
        choice, engine = ride.choices[delta.choice], self._engines[engine_idx]
        if choice.take(delta):
            engine.abort(delta.request_id, delta.choice)
        if all(choice.reason for choice in ride.choices):
            del self._rides[delta.request_id]
        elif ride.moves_at is not None and len(ride.choices[0].ids) >= ride.moves_at:
            del self._rides[delta.request_id]
            engine.abort(delta.request_id)
            what = DISTURBANCES[ride.number % len(DISTURBANCES)]
            self.counts[what] += 1
            ride.engine_idx = (engine_idx + (what == DISTURBANCES[2])) % len(self._engines)
            ride.moves_at = None
            self._add(ride)


def margin(
    engine: Engine, job: PreparedJob, choice: int, ids: Sequence[int], told: Sequence[int]
) -> Margin:
    """Return how near the tokens that two runs drew behind `ids` were to be drawn alone."""
    state: Any = engine._runner.sampling
    seen, draw = [], state._draw

    def noted(*args: Any) -> Any:
        seen.append(state.adjusted_logits(*args)[-1].float().clone())
        return draw(*args)

    state._draw = noted
    params = replace(job.params, stop=(), n=choice + 1, max_tokens=len(ids) + 1)
    done, resumed = tuple(range(choice)), (*[()] * choice, tuple(ids))
    engine.add(Request(10**9, job.prompt_ids, params, resumed_ids=resumed, done_choices=done))
    while engine.has_work:
        engine.step()
    del state._draw
    at = uniform(job.params.seed or 0, choice, len(ids))
    # Taken alone, the step draws either of them or another one.
    return max(margin_of(seen[0], job.params, at, token_id) for token_id in told)


def differences(
    wanted: dict[int, list[Choice]], found: dict[int, list[Choice]]
) -> Iterator[tuple[int, int, int | None, str]]:
    """Yield job, choice, the place where tokens part or None, and what differs."""
    for number, choices in wanted.items():
        for idx, (one, two) in enumerate(zip(choices, found[number], strict=True)):
            if one.ids != two.ids:
                pairs = zip(one.ids, two.ids, strict=False)
                place = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), None)
                yield number, idx, place, f"{len(one.ids)} and {len(two.ids)} tokens"
            elif one.reason != two.reason:
                yield number, idx, None, f"{one.reason} and {two.reason}"
            else:
                scores = zip(one.logprobs, two.logprobs, strict=True)
                error = max((abs(a.logprob - b.logprob) for a, b in scores), default=0.0)
                if error > LOGPROB_ERROR:
                    yield number, idx, None, f"logprobs {error:.1e} apart"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--agent", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--shard", default="0/1", help="which part of the jobs, of how many")
    parser.add_argument("--pages", type=int, default=620, help="of each engine that speculates")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run all jobs twice and print what differs; exit with 1 if more than near ties do."""
    args = _arguments()
    began_at = time.monotonic()
    part, _, parts = args.shard.partition("/")
    plain = EngineConfig(
        args.model, dtype=args.dtype, device=args.device, page_size=PAGE_SIZE, num_pages=1500,
        max_num_seqs=3 * NUM_ROWS, memory_fraction=0.4,
    )  # fmt: skip
    loaded = load_for(replace(plain, speculation="auto"))
    base = engine_for(loaded, plain)
    preparer = PromptPreparer(loaded.tokenizer, base.limits)
    jobs = jobs_of(preparer, args.agent, args.jobs, (int(part), int(parts)))
    wanted = Player([base], jobs).run(disturbed=False)
    half_at = time.monotonic()
    drafting = replace(plain, speculation="auto", num_pages=args.pages)
    engines = [engine_for(loaded, drafting) for _ in range(2)]
    for engine in engines:
        _draft_always(engine)
        engine._scheduler.estimator = ShortAnswers()
    player = Player(engines, jobs)
    found = player.run(disturbed=True)
    apart, near = [], 0
    for number, idx, place, what in differences(wanted, found):
        row: dict[str, Any] = {"job": number, "choice": idx, "place": place, "what": what}
        if place is not None:
            ids = wanted[number][idx].ids
            told = ids[place], found[number][idx].ids[place]
            row |= margin(base, jobs[number], idx, ids[:place], told)._asdict()
            near += row["size"] <= NEAR_TIE
        apart.append(row)
        print(json.dumps(row), flush=True)
    drafts = [dict(engine.stats().drafts_total) for engine in engines]
    choices = [choice for each in wanted.values() for choice in each]
    report = {
        "shard": args.shard, "jobs": len(jobs), "choices": len(choices),
        "tokens": sum(len(choice.ids) for choice in choices), "differ": len(apart),
        "near_ties": near, "seconds": [half_at - began_at, time.monotonic() - half_at],
        "stopped": sum("stopped" in choice.reason for choice in choices), **player.counts,
        "drafted_and_accepted": {
            name: [sum(each[name][at] for each in drafts) for at in (0, 1)] for name in drafts[0]
        },
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({**report, "apart": apart}, indent=1))
    raise SystemExit(len(apart) > near)


def _draft_always(engine: Engine) -> None:
    """Let an engine verify every draft, whatever the machine's steps take."""
    assert engine._drafting is not None
    planner = engine._drafting.speculation
    assert isinstance(planner, DraftPlanner)
    for num_rows in (1, 512):
        planner.measured(num_rows, 10.0)
    planner.measured = lambda *_: None  # type: ignore[method-assign] # steps are not to be timed


if __name__ == "__main__":
    main()
