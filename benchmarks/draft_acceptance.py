"""What drafts are worth for a text: how many tokens are right, and what the best choice would gain.

Usage: python -P benchmarks/draft_acceptance.py [--model smollm2-135m] [--answers 208]
       [--corpus 0 20 100] [--temperature 0.7] [--json FILE]

Answers of a support desk are drawn without speculation. Then the drafters are asked behind every
token of the later ones, with so many earlier answers in the corpus at first, which grows by each,
and what they say is compared with what came; no model runs. Answers that loop are left out, as in
`speculation.py`.

Told are, by what speaks for a guess (tokens alike), how often its first token is right, and of
drafts of 1, 3, 7 and 15 tokens behind every token how many are right on average. Then what a step
of drafts may cost, in plain steps, and the speed that comes of it beside plain steps alone: with
the planner's choice, and with that of an oracle. That one knows what comes, goes on from the best
of all places in prompt, answer and corpus that have the last two tokens alike, and spends a row on
nothing that is wrong: no drafts from these texts are faster.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculation import is_loop, support_requests

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.speculation.match_finder import GAP
from tokenbus.engine.speculation.own_text import OwnText
from tokenbus.engine.speculation.planner import MAX_DRAFT, DraftPlanner
from tokenbus.engine.speculation.pool_text import LEAD_TOKENS, PoolText
from tokenbus.engine.types import Request
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.jobs.prompt import PromptPreparer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.engine import Engine

    # Prompt and answer.
    Text = tuple[list[int], list[int]]

LENGTHS = (1, 3, 7, 15)
# What steps of 1, 2, 4, 8 and 16 rows cost, in plain steps: a step that checks drafts for nothing,
# what is asked of an 8B shape, and what was measured of it.
COSTS = {
    "free": (1.0, 1.0, 1.0, 1.0, 1.0),
    "asked for": (1.0, 1.06, 1.08, 1.12, 1.25),
    "measured": (1.0, 1.26, 1.27, 1.31, 1.43),
}
_ROWS = (1, 2, 4, 8, 16)
_BATCH = 16
# Tokens that an oracle's place has alike.
_ALIKE = 2


def cost_of(num_rows: int, costs: Sequence[float]) -> float:
    """Return what a step of so many rows costs, between the sizes in a straight line."""
    for (low, cheap), (high, dear) in pairwise(zip(_ROWS, costs, strict=True)):
        if num_rows <= high:
            return cheap + (dear - cheap) * (num_rows - low) / (high - low)
    raise ValueError(f"{num_rows} rows")


def drawn_texts(engine: Engine, preparer: PromptPreparer, args: argparse.Namespace) -> list[Text]:
    """Return prompts and answers, those that loop left out."""
    requests = support_requests(args.max_tokens)
    prompts: list[list[int]] = []
    answers: list[list[int]] = [[] for _ in range(args.answers)]
    for number, fields in zip(range(args.answers), requests, strict=False):
        asked = {**fields, "temperature": args.temperature, "seed": 7 + number}
        job = preparer.tokenise(JobRequest.of_fields(asked))
        prompts.append(list(job.prompt_ids))
        engine.add(Request(number, job.prompt_ids, job.params, lane="support"))
    while engine.has_work:
        for delta in engine.step().deltas:
            answers[delta.request_id] += delta.token_ids
    texts = zip(prompts, answers, strict=True)
    return [(prompt, answer) for prompt, answer in texts if not is_loop(answer)]


class Chances:
    """How often guesses were right, of one corpus."""

    def __init__(self) -> None:
        self.num_places = 0
        self.firsts: Counter[tuple[str, int, bool]] = Counter()
        self.right: Counter[tuple[str, int]] = Counter()

    def ask(self, earlier: Sequence[Text], text: Text, key: int) -> None:
        """Ask both drafters behind each token of an answer."""
        prompt, answer = text
        known = list(prompt)
        view = DraftView(key, "shop", known, len(prompt))
        own, pool = OwnText(), PoolText(1 << 24)
        for name, (before, said) in enumerate(earlier):
            pool.add(name, "shop", [*before[-LEAD_TOKENS:], *said])
        for place, token in enumerate(answer):
            if place:
                for drafter in (own, pool):
                    guess = drafter.follow(view, MAX_DRAFT)
                    num = 0 if guess is None else _alike(guess.token_ids, answer[place:])
                    if guess is not None:
                        self.firsts[drafter.name, guess.strength, num > 0] += 1
                    for length in LENGTHS:
                        self.right[drafter.name, length] += min(num, length)
                self.num_places += 1
            known.append(token)

    def told(self) -> dict[str, Any]:
        """Return shares by source: places with a guess, first tokens right, tokens of a draft."""
        rows: dict[str, Any] = {}
        for name in (OwnText.name, PoolText.name):
            by_strength = {}
            for low, high in ((2, 2), (3, 3), (4, 5), (6, 8), (9, 16), (0, 16)):
                num_right, num_wrong = (
                    sum(
                        num
                        for (source, strength, is_right), num in self.firsts.items()
                        if source == name and low <= strength <= high and is_right == kind
                    )
                    for kind in (True, False)
                )
                asked = num_right + num_wrong
                by_strength[f"{low}-{high}" if low else "any"] = (
                    round(asked / max(1, self.num_places), 3),
                    round(num_right / max(1, asked), 3),
                )
            rows[name] = {
                "guessed and right, by tokens alike": by_strength,
                "right tokens behind any token, by length": {
                    length: round(self.right[name, length] / max(1, self.num_places), 3)
                    for length in LENGTHS
                },
            }
        return rows


def most_right(earlier: Sequence[Text], text: Text) -> list[int]:
    """Return of each place of an answer how many tokens the best place to go on from has right."""
    prompt, answer = text
    known: list[int] = []
    places: dict[tuple[int, int], list[int]] = {}

    def take(token: int) -> None:
        known.append(token)
        if len(known) >= _ALIKE:
            places.setdefault((known[-2], known[-1]), []).append(len(known))

    for before, said in earlier:
        for token in (*before[-LEAD_TOKENS:], *said, GAP):
            take(token)
    for token in prompt:
        take(token)
    most = []
    for place, token in enumerate(answer):
        come = answer[place : place + MAX_DRAFT]
        found = places.get((known[-2], known[-1]), []) if place else []
        # The newest pair would only find itself; what runs into it has a period.
        rests = ([*known[at : at + MAX_DRAFT], *come] for at in found if at < len(known))
        most.append(max((_alike(rest, come) for rest in rests), default=0))
        take(token)
    return most


def oracle_cost(most: Sequence[int], costs: Sequence[float]) -> float:
    """Return the least cost of an answer, in plain steps, if what is right were known."""
    least = [0.0] * (len(most) + 1)
    for place in reversed(range(len(most))):
        # A draft of n right tokens brings one more, which the step draws behind them.
        sizes = range(min(most[place], len(most) - place - 1) + 1)
        least[place] = min(cost_of(1 + num, costs) + least[place + 1 + num] for num in sizes)
    return least[0]


def planned_cost(
    planner: DraftPlanner, text: Text, key: int, costs: Sequence[float]
) -> tuple[float, int, int]:
    """Return what an answer costs as the planner drafts, and tokens drafted and right."""
    prompt, answer = text
    known = [*prompt, answer[0]]
    view = DraftView(key, "shop", known, len(prompt), lane="support", request_id=key)
    cost, drafted, right, place = 1.0, 0, 0, 1
    while place < len(answer):
        draft = planner.plan([view]).get(key, []) if planner.pays(1) else []
        num = _alike(draft, answer[place:])
        planner.report(key, draft, num)
        cost += cost_of(1 + len(draft), costs)
        drafted, right = drafted + len(draft), right + num
        known += answer[place : place + num + 1]
        place += num + 1
    planner.drop(view)
    return cost, drafted, right


def planner_for(costs: Sequence[float], step_s: float) -> DraftPlanner:
    """Return a planner to which steps cost so much, and that measures no others."""
    planner = DraftPlanner(1 << 24)
    for _ in range(5):
        for num_rows in range(1, _ROWS[-1] + 1):
            planner.measured(num_rows, step_s * cost_of(num_rows, costs))
    return planner


def _alike(guess: Sequence[int], came: Sequence[int]) -> int:
    pairs = zip(guess, came, strict=False)
    return next((num for num, (one, two) in enumerate(pairs) if one != two),
                min(len(guess), len(came)))  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--answers", type=int, default=208)
    parser.add_argument("--corpus", type=int, nargs="+", default=[0, 20, 100])
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--step-ms", type=float, default=4.0, help="of a plain step")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Print a line per size of the corpus, and one per cost of steps."""
    args = _arguments()
    loaded = load_for(
        config := EngineConfig(
            args.model, dtype=args.dtype, device=args.device, max_num_seqs=_BATCH
        )
    )
    engine = engine_for(loaded, config)
    texts = drawn_texts(engine, PromptPreparer(loaded.tokenizer, engine.limits), args)
    engine.close()
    asked = texts[max(args.corpus) :]
    num_tokens = sum(len(answer) for _, answer in asked)
    report: list[dict[str, Any]] = []
    for size in args.corpus:
        earlier, chances = texts[max(args.corpus) - size : max(args.corpus)], Chances()
        for key, text in enumerate(asked):
            chances.ask([*earlier, *asked[:key]], text, key)
        most = [most_right([*earlier, *asked[:key]], text) for key, text in enumerate(asked)]
        row: dict[str, Any] = {
            "corpus": size, "answers": len(asked), "tokens": num_tokens,
            "looped": args.answers - len(texts), **chances.told(),
        }  # fmt: skip
        for name, costs in COSTS.items():
            planner = planner_for(costs, args.step_ms / 1e3)
            for key, (before, said) in enumerate(earlier):
                planner.pool.add(10**6 + key, "shop", [*before[-LEAD_TOKENS:], *said])
            found = [planned_cost(planner, text, key, costs) for key, text in enumerate(asked)]
            row[f"speed, {name}"] = {
                "oracle": round(num_tokens / sum(oracle_cost(each, costs) for each in most), 3),
                "planner": round(num_tokens / sum(cost for cost, _, _ in found), 3),
                "drafted": sum(drafted for _, drafted, _ in found),
                "right": sum(right for _, _, right in found),
            }
        report.append(row)
        print(json.dumps(row), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
