"""Why a mixture in bfloat16 parts from one rank: `python benchmarks/router_ties.py --model DIR`.

Greedy answers of two ranks are compared with those of one. Where they part, the first row before
is told that went to other experts, with the router's logits of the last expert that was chosen and
of the first that was left out. Then the same with the experts of one rank forced on both of two.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tokenbus.engine.build import build_engine
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.parallel import follower, leading
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from tokenbus.engine.types import TokenLogprobs

_NUM_TOKENS, _CHUNK = 24, 64
_FOLLOW = "--follow"


class Answer(NamedTuple):
    """An answer, and what routers said for it: of each call logits [T, E], experts [T, top_k]."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    calls: list[tuple[Tensor, Tensor]]


class Choices:
    """The routers' choices of this process: noted, and replaced where there are others for them."""

    def __init__(self, device: str) -> None:
        """See every choice from now on."""
        self.noted: list[tuple[Tensor, Tensor]] = []
        self._forced: Iterator[Tensor] | None = None
        if device == "cpu":
            self._watch_torch()
        else:
            self._watch_kernel()

    def begin(self, forced: str) -> None:
        """Note anew, and replace what comes by the experts in a file, if one is named."""
        self.noted = []
        self._forced = iter(torch.load(forced)) if forced else None

    def _watch_torch(self) -> None:
        from tokenbus.engine.models.experts import torch_experts

        plain = torch_experts.choose_experts

        def choose(logits: Tensor, shape: Any) -> tuple[Tensor, Tensor]:
            experts, weights = plain(logits, shape)
            return self._see(logits, experts, shape) or (experts, weights)

        torch_experts.choose_experts = choose

    def _watch_kernel(self) -> None:
        from tokenbus.kernels.experts import router, routing

        plain: Any = routing.launch_choice

        def launch(logits: Tensor, chosen: Any, rule: Any) -> None:
            plain(logits, chosen, rule)
            if others := self._see(logits, chosen.experts, rule):
                chosen.experts.copy_(others[0])
                chosen.weights.copy_(others[1])

        for module in (router, routing):
            vars(module)["launch_choice"] = launch

    def _see(self, logits: Tensor, experts: Tensor, rule: Any) -> tuple[Tensor, Tensor] | None:
        """Note a choice; return the experts to take in place of these, and their weights."""
        own = logits[:, : rule.num_experts].float()
        self.noted.append((own.cpu(), experts.long().cpu()))
        if self._forced is None:
            return None
        others = next(self._forced).to(logits.device)
        shares = own.softmax(-1).gather(1, others)
        return others, shares / shares.sum(-1, keepdim=True) if rule.renormalise else shares


def answers(
    choices: Choices, args: argparse.Namespace, size: int, forced: str = ""
) -> list[Answer]:
    """Answer prompts one after the other on so many ranks."""
    chance = random.Random(5)
    choices.begin(forced)
    leading._COMMAND = (sys.executable, "-P", __file__, _FOLLOW, args.device, forced)
    params = SamplingParams(max_tokens=_NUM_TOKENS, temperature=0.0, ignore_eos=True, logprobs=2)
    config = EngineConfig(
        args.model, device=args.device, dtype="bfloat16", tensor_parallel=size, cuda_graphs=False,
        num_pages=64, max_num_seqs=4, max_batch_tokens=_CHUNK, prefix_cache=False,
    )  # fmt: skip
    engine, found = build_engine(config), []
    for number in range(args.prompts):
        length = chance.randrange(4, _CHUNK)
        prompt = tuple(chance.randrange(3, 190) for _ in range(length))
        answer, begin = Answer([], [], []), len(choices.noted)
        engine.add(Request(number, prompt, params))
        while engine.has_work:
            for delta in engine.step().deltas:
                answer.token_ids.extend(delta.token_ids)
                answer.logprobs.extend(delta.logprobs)
        answer.calls.extend(choices.noted[begin:])
        found.append(answer)
    engine.close()
    return found


def first_swap(one: Answer, other: Answer, num_calls: int) -> str:
    """Tell of the first row that went to other experts in calls before the answers part."""
    calls = zip(one.calls[:num_calls], other.calls[:num_calls], strict=True)
    for (logits, experts), (others_logits, others) in calls:
        for row, (own, peer) in enumerate(zip(experts, others, strict=True)):
            if set(own.tolist()) != set(peer.tolist()):
                last, left_out = logits[row].sort(descending=True).values[len(own) - 1 :][:2]
                steps = (last - left_out) / 2.0 ** (last.abs().log2().floor() - 7)
                apart = (logits[row] - others_logits[row]).abs().max()
                return (
                    f"other experts before: the last chosen and the first left out have {last:.4f}"
                    f" and {left_out:.4f}, {steps:.0f} steps of bfloat16 apart; two ranks have"
                    f" logits that differ by {apart:.4f} at most"
                )
    return "the same experts before"


def compare(title: str, one: Sequence[Answer], other: Sequence[Answer]) -> None:
    """Print where answers part and how near the best two tokens were."""
    print(f"{title}:")
    gaps = []
    for number, (own, peer) in enumerate(zip(one, other, strict=True)):
        pairs = enumerate(zip(own.token_ids, peer.token_ids, strict=True))
        first = next((idx for idx, (a, b) in pairs if a != b), None)
        if first is None:
            continue
        best, second = own.logprobs[first].top[:2]
        gaps.append(best[1] - second[1])
        # A prompt is one chunk; each token but the first has a call for every mixture.
        num_mixtures = len(own.calls) // len(own.token_ids)
        swap = first_swap(own, peer, num_mixtures * (first + 1))
        print(
            f"  answer {number} parts at token {first}, {gaps[-1]:.4f} between the best two; {swap}"
        )
    told = " ".join(f"{gap:.3f}" for gap in sorted(gaps, reverse=True))
    print(f"  {len(one) - len(gaps)} of {len(one)} answers are equal; gaps: {told}", flush=True)


def main(argv: list[str]) -> int:
    """Compare, or follow as a rank of a comparison."""
    if argv[:1] == [_FOLLOW]:
        Choices(argv[1]).begin(argv[2])
        return follower.main(argv[3:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder with a mixture of experts")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--prompts", type=int, default=40)
    args = parser.parse_args(argv)
    choices = Choices(args.device)
    one = answers(choices, args, 1)
    with tempfile.TemporaryDirectory() as folder:
        experts = str(Path(folder) / "experts.pt")
        torch.save([chosen for _, chosen in choices.noted], experts)
        compare("two ranks", one, answers(choices, args, 2))
        compare("two ranks with the experts of one", one, answers(choices, args, 2, experts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
