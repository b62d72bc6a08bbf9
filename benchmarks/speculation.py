"""Speculation: tokens a second with drafts and without, on real text, the same answers in turn.

Usage: python benchmarks/speculation.py --agent tau_bench_retail.json [--schemas FOLDER]
       [--device cpu|cuda] [--workload support tools schemas] [--model smollm2-135m]
       [--batch 1 8 64] [--answers 16] [--groups 1] [--json FILE]

Two engines share one model: `speculation="auto"` and `"off"`. Each group of prompts goes through
both, in turn, and the texts are compared token for token. Workloads:

- `tools`: a retail agent with its policy and its 16 tools (sierra-research/tau-bench, MIT; the file
  has `policy_system_prompt`, `tools` and `train_instructions`): one call per customer.
- `schemas`: the support desk's questions, answered by objects of schemas of published packages, as
  `schema_packages.py` has fetched them into a folder.
- `support`: a shop's support desk, free text; questions are put together of cases and products, no
  two alike.

Each is run cold, with no answer of the group in the corpus at first, and then warm, with other
prompts of the same kind and other seeds. Of the answers under a grammar the shares of tokens are
told: `forced`, which have no alternative, `key` and `value`, which begin words that the schema
names where few tokens may come, and `free`. Answers in which a run of 16 tokens comes back three
times are counted and left out: a small model that loops would flatter every drafter.

`--host` measures the planner alone: microseconds of host time a step, by batch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, cycle, product
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from schema_packages import schemas

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.execution.draft_walk import DraftWalk
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.speculation.planner import DraftPlanner
from tokenbus.engine.types import DraftCount, GrammarKind, GrammarSpec, Request
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.demo.jobs import SUPPORT
from tokenbus.worker.jobs.prompt import PromptPreparer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.types import EngineStats
    from tokenbus.worker.held.prepared_job import PreparedJob

MODES = ("off", "auto")
LOOP_TOKENS, LOOP_TIMES = 16, 3
_SHARE = 0.4
CASES = (
    "My {} arrived with a tear. What do I do?",
    "Can I return the {} that I have used once?",
    "How long does the repair of a {} take, and what does it cost?",
    "I ordered a {} this morning. When will it be here?",
    "The {} that I bought last year broke on its second trip. Is that covered?",
    "I would like to swap my {} for another size. How?",
    "Where do I find the return label for a {}?",
    "Was my refund for the {} sent already? I posted it on Monday.",
)
PRODUCTS = (
    *("Fenn 2 tent", "Fenn 4 tent", "Tarn rucksack of 28 litres", "Tarn rucksack of 55 litres"),
    *("Moss sleeping bag", "Crag boots", "Dash trail shoes", "Ember stove", "Ember pot set"),
    *("Kite rain jacket", "Drover parka", "Spoke lights", "Spoke panniers"),
)


@dataclass(slots=True)
class Answers:
    """What one engine made of some prompts: ids, and seconds from the first token to the last."""

    ids: list[tuple[int, ...]] = field(default_factory=list)
    num_timed: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def is_loop(ids: Sequence[int]) -> bool:
    """Tell whether a run of tokens comes back again and again."""
    runs = Counter(
        tuple(ids[start : start + LOOP_TOKENS]) for start in range(len(ids) - LOOP_TOKENS + 1)
    )
    return bool(runs) and max(runs.values()) >= LOOP_TIMES


def tool_requests(path: Path, max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield requests to the retail agent, no two alike."""
    agent = json.loads(path.read_text())
    for instruction in agent["train_instructions"]:
        yield {
            "messages": [
                {"role": "system", "content": agent["policy_system_prompt"]},
                {"role": "user", "content": instruction},
            ],
            "tools": agent["tools"],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": max_tokens,
        }


def schema_requests(folder: Path, tokenizer: Any, max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield questions to be answered by an object of a published schema, one that compiles."""
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (tokenizer.eos_token_id,))
    kept = []
    for _, source in schemas(sorted(folder.iterdir())):
        with suppress(GrammarRejected):
            compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, source))
            kept.append(json.loads(source))
    for fields, schema in zip(support_requests(max_tokens), cycle(kept), strict=False):
        named = {"name": "answer", "schema": schema}
        yield {**fields, "response_format": {"type": "json_schema", "json_schema": named}}


def support_requests(max_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield questions to the support desk, no two alike."""
    questions = [case.format(product) for product in PRODUCTS for case in CASES]
    Random(3).shuffle(questions)
    for number, question in enumerate(cycle(questions)):
        order = f" My order is {4000 + number}." if number >= len(questions) else ""
        yield {
            "messages": [
                {"role": "system", "content": SUPPORT},
                {"role": "user", "content": question + order},
            ],
            "max_tokens": max_tokens,
        }


def answered(engine: Engine, jobs: Sequence[PreparedJob], first_id: int, workload: str) -> Answers:
    """Answer jobs at once; each is timed from its first step to its last."""
    answers = Answers([()] * len(jobs), [0] * len(jobs), [0.0] * len(jobs))
    for number, job in enumerate(jobs):
        request = Request(
            first_id + number, job.prompt_ids, job.params, cache_salt=workload, lane=workload
        )
        engine.add(request)
    ids: list[list[int]] = [[] for _ in jobs]
    began: dict[int, tuple[float, int]] = {}
    while engine.has_work:
        output = engine.step()
        now = time.perf_counter()
        for delta in output.deltas:
            number = delta.request_id - first_id
            ids[number] += delta.token_ids
            if number not in began and ids[number]:
                began[number] = now, len(ids[number])
            if delta.finish_reason is not None and number in began:
                at, num_first = began[number]
                answers.ids[number] = tuple(ids[number])
                answers.seconds[number] = now - at
                answers.num_timed[number] = len(ids[number]) - num_first
    return answers


def kinds_of(engine: Engine, job: PreparedJob, ids: Sequence[int]) -> Iterator[str]:
    """Yield what each token of an answer is to its grammar; nothing without one."""
    spec = job.params.grammar
    if spec is None:
        return
    prepared = engine._constrained._ready_preparer().prepare(spec, "", 1, []).result()
    tokenizer: Any = engine._constrained._tokenizer
    matcher, is_value = prepared.matcher, False
    for token_id in ids:
        walk = DraftWalk(matcher.fork())
        if walk.forced():
            yield "forced"
        elif walk.likely():
            yield "value" if is_value else "key"
        else:
            yield "free"
        if not walk.accept(token_id):
            return
        matcher.accept(token_id)
        text = str(tokenizer.decode([token_id]))
        is_value = text.rstrip(' "').endswith(":") or (is_value and not text.strip(' "'))


def drafted_since(
    before: Mapping[str, DraftCount], stats: EngineStats
) -> dict[str, tuple[int, int]]:
    """Return the drafted and the accepted tokens of each drafter since what was counted before."""
    none = DraftCount()
    return {
        name: (
            count.drafted - before.get(name, none).drafted,
            count.accepted - before.get(name, none).accepted,
        )
        for name, count in stats.drafts_total
    }


def compared(
    engines: dict[str, Engine],
    groups: Iterable[Sequence[PreparedJob]],
    first_id: int,
    workload: str,
    shares: Counter[str],
) -> dict[str, Any]:
    """Put groups of jobs through both engines, in turn, and tell what came of it."""
    tokens, seconds = dict.fromkeys(MODES, 0), dict.fromkeys(MODES, 0.0)
    ratios: list[float] = []
    num_answers = num_loops = num_other = 0
    stats = engines["auto"].stats()
    before, turns_before = dict(stats.drafts_total), stats.decode_turns_total
    for turn, jobs in enumerate(groups):
        found = {
            mode: answered(engines[mode], jobs, first_id, workload)
            for mode in MODES[:: (-1) ** turn]
        }
        first_id += len(jobs)
        rates = {}
        for mode, answers in found.items():
            kept = [number for number, ids in enumerate(answers.ids) if not is_loop(ids)]
            num_tokens = sum(answers.num_timed[number] for number in kept)
            longest = max((answers.seconds[number] for number in kept), default=0.0)
            tokens[mode] += num_tokens
            seconds[mode] += longest
            rates[mode] = num_tokens / longest if longest else 0.0
        if rates["off"] and rates["auto"]:
            ratios.append(rates["auto"] / rates["off"])
        num_answers += len(jobs)
        for job, ids in zip(jobs, found["off"].ids, strict=True):
            shares.update(kinds_of(engines["off"], job, ids))
        num_loops += sum(map(is_loop, found["off"].ids))
        num_other += sum(
            one != other for one, other in zip(found["off"].ids, found["auto"].ids, strict=True)
        )
    stats = engines["auto"].stats()
    drafts = drafted_since(before, stats)
    num_turns = stats.decode_turns_total - turns_before
    return {
        "answers": num_answers,
        "loops_left_out": num_loops,
        "other_text": num_other,
        "tokens_per_s": {mode: tokens[mode] / max(1e-9, seconds[mode]) for mode in MODES},
        "ratio": median(ratios) if ratios else None,
        "tokens_per_step": 1 + sum(right for _, right in drafts.values()) / max(1, num_turns),
        "drafted_and_accepted": drafts,
        "shares": {kind: round(num / max(1, shares.total()), 3) for kind, num in shares.items()},
    }


def host_us(num_seqs: int, num_steps: int = 400) -> float:
    """Return the microseconds that the planner takes for a step: the median of many.

    Texts are put together of phrases that come back, so that searches find something.
    """
    source = Random(1)
    phrases = [[source.randrange(40_000) for _ in range(source.randint(3, 12))] for _ in range(400)]

    def text(num_tokens: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < num_tokens:
            ids += source.choice(phrases)
        return ids[:num_tokens]

    planner = DraftPlanner(1 << 22)
    for name in range(100):
        planner.pool.add(name, "g", text(150))
    for num_rows in (1, 4, 16, 64, 512):
        planner.measured(num_rows, 0.010 + 0.0002 * num_rows)
    texts = [array("i", text(1000)) for _ in range(num_seqs)]
    views = [DraftView(key, "g", ids, 900, lane="l") for key, ids in enumerate(texts)]
    follows = [iter(text(num_steps + 1)) for _ in views]
    times = []
    for _ in range(num_steps):
        # Of this thread alone, whatever else the machine does.
        began = time.thread_time()
        drafts = planner.plan(views)
        for view in views:
            planner.report(view.key, drafts.get(view.key, ()), 0)
        times.append(time.thread_time() - began)
        for ids, following in zip(texts, follows, strict=True):
            ids.append(next(following))
    return median(times) * 1e6


def _requests(workload: str, args: argparse.Namespace, tokenizer: Any) -> Iterator[dict[str, Any]]:
    if workload == "tools":
        return tool_requests(args.agent, args.max_tokens)
    if workload == "schemas":
        return schema_requests(args.schemas, tokenizer, args.max_tokens)
    return support_requests(args.max_tokens)


def _grouped(jobs: Sequence[PreparedJob], batch: int) -> Iterator[Sequence[PreparedJob]]:
    for start in range(0, len(jobs) - batch + 1, batch):
        yield jobs[start : start + batch]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--agent", type=Path, help="the retail agent's file, for tools")
    parser.add_argument("--schemas", type=Path, help="a folder of packages, for schemas")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--answers", type=int, default=16, help="of each workload, cold and warm")
    parser.add_argument("--groups", type=int, default=1, help="least groups of each, in turn")
    parser.add_argument("--workload", nargs="+", default=["support", "tools"])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--host", action="store_true", help="measure the planner alone")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = _arguments()
    if args.host:
        for num_seqs in (1, 2, 4, 8, 32):
            print(f"{num_seqs:>4} sequences: {host_us(num_seqs):7.1f} us a step", flush=True)
        return
    config = EngineConfig(
        args.model,
        dtype=args.dtype,
        device=args.device,
        # Of a device's memory so much goes to the first engine, and the second gets as much.
        memory_fraction=_SHARE,
        speculation="auto",
        max_num_seqs=max(args.batch),
    )
    loaded = load_for(config)
    engines = {
        mode: engine_for(loaded, replace(config, speculation=mode, memory_fraction=_SHARE * number))
        for number, mode in enumerate(MODES, 1)
    }
    preparer = PromptPreparer(loaded.tokenizer, engines["off"].limits)
    found: list[dict[str, Any]] = []
    seeds = count(7)
    for batch, workload in product(args.batch, args.workload):
        requests = _requests(workload, args, loaded.tokenizer)
        first_id = 1_000_000 * len(found)
        for corpus in ("cold", "warm"):
            num_jobs = max(batch * args.groups, args.answers // batch * batch)
            jobs = [
                preparer.tokenise(
                    JobRequest.of_fields(
                        {**fields, "temperature": args.temperature, "seed": next(seeds)}
                    )
                )
                for fields, _ in zip(requests, range(num_jobs), strict=False)
            ]
            # A group of its own, so that no corpus is warm from the batch before.
            group = f"{workload}-{batch}"
            row = compared(engines, _grouped(jobs, batch), first_id, group, Counter())
            first_id += len(jobs)
            row = {"workload": workload, "corpus": corpus, "batch": batch, **row}
            row["load"] = os.getloadavg()[0]
            found.append(row)
            print(json.dumps(row), flush=True)
    for engine in engines.values():
        engine.close()
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
