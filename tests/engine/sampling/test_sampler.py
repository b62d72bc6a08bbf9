"""The sampler as a whole: rows in batches, masks, logprobs, ends."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.sampling.bitmask import bitmask_width, leaves_one
from tokenbus.engine.sampling.logprobs import raw_logprobs
from tokenbus.engine.sampling.plan import Feature, SamplingPlan
from tokenbus.engine.sampling.row_table import RowTable
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.sampling.validation import validate_sampling
from tokenbus.engine.types import SamplingParams
from tokenbus.kernels.draw_outcomes import EMPTY_ROW

VOCAB = 1000
EOS = 2

ROWS = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=11),
    SamplingParams(seed=11, temperature=1.4, top_k=40, top_p=0.9),
    SamplingParams(seed=12, min_p=0.02, repetition_penalty=1.2),
    SamplingParams(seed=13, logit_bias={4: 3.0}, min_tokens=4, logprobs=3),
    SamplingParams(seed=14, bad_words=((5, 6), (7,)), presence_penalty=0.4),
]


def logits_at(row: int, position: int) -> torch.Tensor:
    """Return the logits a model would give one row, whatever else is in the batch."""
    generator = torch.Generator().manual_seed(1000 * row + position)
    return torch.randn(VOCAB, generator=generator) * 2


def generate(state: SamplingState, rows: list[int], length: int) -> list[list[int]]:
    """Run rows in one batch; row r of the state holds parameters r."""
    outputs: list[list[int]] = [[] for _ in rows]
    for position in range(length):
        logits = torch.stack([logits_at(row, position) for row in rows])
        positions = torch.full((len(rows),), position)
        token_ids = state.sample(logits, torch.tensor(rows), positions).token_ids.tolist()
        for output, token_id in zip(outputs, token_ids, strict=True):
            output.append(token_id)
    return outputs


def new_state(rows: list[int]) -> SamplingState:
    """Return a state with these rows set."""
    state = SamplingState(len(ROWS), VOCAB, "cpu", (EOS,))
    for row in rows:
        state.set_row(row, ROWS[row], 0, [1, 5])
    return state


def test_tokens_are_the_same_alone_and_in_any_batch() -> None:
    """The same seed draws the same tokens alone, batched, reordered and from another row."""
    everyone = list(range(len(ROWS)))
    alone = [generate(new_state([row]), [row], 12)[0] for row in everyone]
    assert generate(new_state(everyone), everyone, 12) == alone
    shuffled = [3, 0, 5, 1, 4, 2]
    assert generate(new_state(everyone), shuffled, 12) == [alone[row] for row in shuffled]


def test_choices_of_one_seed_draw_differently_and_repeat_exactly() -> None:
    """Seed, choice and position key the draw: another choice is another stream."""

    def draws(seed: int, choice: int) -> list[int]:
        state = SamplingState(1, VOCAB, "cpu")
        state.set_row(0, SamplingParams(seed=seed), choice, [1])
        rows, logits = torch.zeros(32, dtype=torch.int64), torch.zeros(32, VOCAB)
        return state.sample(logits, rows, torch.arange(32)).token_ids.tolist()

    assert draws(5, 0) == draws(5, 0)
    assert len({tuple(draws(seed, choice)) for seed in (5, 6) for choice in (0, 1)}) == 4


def test_greedy_batch_is_the_argmax_and_asks_for_nothing_else() -> None:
    """All-greedy rows have an empty plan; a tiny temperature is greedy as well."""
    state = SamplingState(2, VOCAB, "cpu")
    state.set_row(0, SamplingParams(temperature=0.0, top_p=0.5), 0, [1])
    state.set_row(1, SamplingParams(temperature=1e-7, top_k=5), 0, [1])
    assert state.plan([0, 1]).features == Feature.NONE
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    sampled = state.sample(logits, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(sampled.token_ids, logits.argmax(-1))
    assert sampled.logprobs is None


def test_greedy_rows_stay_greedy_beside_sampled_ones() -> None:
    """A random neighbour does not disturb a greedy row, nor does the padding row."""
    state = new_state(list(range(len(ROWS))))
    logits = torch.stack([logits_at(row, 0) for row in range(3)])
    rows = torch.tensor([0, 2, state.padding_row])
    token_ids = state.sample(logits, rows, torch.zeros(3, dtype=torch.int64)).token_ids
    assert token_ids[0] == logits[0].argmax()
    assert token_ids[2] == logits[2].argmax()


def test_cleared_row_keeps_nothing_of_its_last_owner() -> None:
    """A reused row has no rule, bias or word of the sequence before."""
    state = SamplingState(2, VOCAB, "cpu", (EOS,))
    strict = SamplingParams(
        logit_bias={3: -50.0}, bad_words=((3,),), repetition_penalty=9.0, min_tokens=50
    )
    state.set_row(0, strict, 0, [3], [3])
    state.clear_row(0)
    state.set_row(0, SamplingParams(temperature=0.0), 0, [1])
    state.set_row(1, strict, 0, [1])
    logits = torch.zeros(2, VOCAB)
    logits[:, 3] = 5.0
    logits[:, EOS] = 4.0
    rows = torch.tensor([0, 1])
    adjusted = state.adjusted_logits(
        logits, rows, torch.zeros(2, dtype=torch.int64), state.plan([0, 1])
    )
    assert torch.equal(adjusted[0], logits[0])
    assert adjusted[1].argmax() not in (3, EOS)


def test_cleared_row_asks_for_nothing() -> None:
    """What a row held is in no plan once its owner has gone, whatever the row still holds."""
    state = new_state(list(range(len(ROWS))))
    for row in range(len(ROWS)):
        state.clear_row(row)
        assert state.plan([row]) == SamplingPlan()
    assert state.plan(range(len(ROWS))) == SamplingPlan()


def test_rows_arrive_on_a_device_as_they_were_written() -> None:
    """What is sent of changed rows holds all their scalars and stop ids, and of no others."""
    host, far = (RowTable(len(ROWS), (EOS,), torch.device("cpu")) for _ in range(2))
    for row, params in enumerate(ROWS):
        host.write(row, params, 1)
    sent, kept = [4, 1, 5], [0, 2, 3, len(ROWS)]
    before = [scalar[kept].clone() for scalar in scalars_of(far)]
    far._put(host._host[sent].clone())
    for mine, theirs, early in zip(scalars_of(far), scalars_of(host), before, strict=True):
        assert torch.equal(mine[sent], theirs[sent])
        assert torch.equal(mine[kept], early)


def scalars_of(table: RowTable) -> list[torch.Tensor]:
    """Return what a table holds of every row, its stop ids last."""
    scalars = table.gather(torch.arange(len(ROWS) + 1))
    return [*(getattr(scalars, field.name) for field in fields(scalars)), table.stop_ids]


def test_sampling_leaves_the_logits_as_they_were() -> None:
    """The caller's logits are not written, whatever the rows ask for."""
    state = new_state(list(range(len(ROWS))))
    logits = torch.stack([logits_at(row, 0) for row in range(len(ROWS))])
    before = logits.clone()
    positions = torch.zeros(len(ROWS), dtype=torch.int64)
    state.sample(logits, torch.arange(len(ROWS)), positions)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("vocab_size", [31, 32, 33, 100])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bitmask_allows_exactly_its_tokens(vocab_size: int, temperature: float) -> None:
    """Only tokens whose bit is set are drawn; what a short mask does not cover is forbidden."""
    allowed = {0, 5, 30}
    words = [sum(1 << (t % 32) for t in allowed)] + [0] * (bitmask_width(vocab_size) - 1)
    bitmask = torch.tensor([words], dtype=torch.int64).to(torch.int32)
    state = SamplingState(1, vocab_size, "cpu")
    state.set_row(0, SamplingParams(temperature=temperature), 0, [1])
    drawn = set()
    for position in range(64):
        logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(position))
        sampled = state.sample(
            logits, torch.tensor([0]), torch.tensor([position]), bitmask=bitmask[:, :1]
        )
        assert (sampled.token_ids >= 0).all()
        drawn.add(int(sampled.token_ids))
    assert drawn == allowed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_row_without_any_allowed_token_is_reported(temperature: float) -> None:
    """A row whose rules leave nothing is a dead end; its neighbour is served."""
    state = SamplingState(2, VOCAB, "cpu")
    for row in (0, 1):
        state.set_row(row, SamplingParams(temperature=temperature, top_p=0.9), 0, [1])
    bitmask = torch.zeros(2, bitmask_width(VOCAB), dtype=torch.int32)
    bitmask[1, 0] = 1 << 7
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    sampled = state.sample(
        logits, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64), bitmask=bitmask
    )
    assert sampled.token_ids.tolist() == [EMPTY_ROW, 7]
    assert sampled.inputs().tolist() == [0, 7]


@pytest.mark.parametrize(
    ("token_ids", "is_one"),
    [
        ((3,), True),
        ((31,), True),
        ((63,), True),
        ((), False),
        ((30, 31), False),
        ((0, 40), False),
        (tuple(range(32)), False),
    ],
    ids=str,
)
def test_mask_leaves_one_token_or_not(token_ids: tuple[int, ...], is_one: bool) -> None:
    """The highest bit of a word is its sign, and a token like any other."""
    words = [0, 0]
    for token_id in token_ids:
        words[token_id // 32] |= 1 << token_id % 32
    signed = [word - (1 << 32) if word >> 31 else word for word in words]
    assert leaves_one(torch.tensor(signed, dtype=torch.int32)) is is_one


def test_logprobs_describe_the_raw_distribution() -> None:
    """Log-probabilities ignore temperature, filters and rules; rank 1 is the most probable."""
    state = SamplingState(2, VOCAB, "cpu")
    biased = SamplingParams(temperature=0.5, top_k=3, logit_bias={9: 100.0}, logprobs=4)
    state.set_row(0, biased, 0, [1])
    state.set_row(1, SamplingParams(temperature=0.0), 0, [1])
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(8)) * 2
    sampled = state.sample(logits, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64))
    assert sampled.logprobs is not None
    first, second = sampled.logprobs.to_host([4, None])
    assert second is None
    assert first is not None
    expected = torch.log_softmax(logits[0], -1)
    assert first.token_id == 9
    assert first.logprob == pytest.approx(float(expected[9]), abs=1e-5)
    assert first.rank == int((logits[0] > logits[0, 9]).sum()) + 1
    values, ids = expected.topk(4)
    assert [token_id for token_id, _ in first.top] == ids.tolist()
    assert [value for _, value in first.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_prompt_logprobs_use_the_same_scores() -> None:
    """Row t of the logits scores token t + 1; zero alternatives leave the chosen token alone."""
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(9))
    next_ids = torch.tensor([3, 1, 4, 1, 5])
    scores = raw_logprobs(logits, next_ids, 0).to_host([0] * 5)
    expected = torch.log_softmax(logits, -1)[torch.arange(5), next_ids]
    assert [s.logprob for s in scores if s] == pytest.approx(expected.tolist(), abs=1e-5)
    assert all(s is not None and s.top == () for s in scores)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("n", SamplingParams(n=0)),
        ("max_tokens", SamplingParams(max_tokens=-1)),
        ("min_tokens", SamplingParams(min_tokens=9, max_tokens=8)),
        ("temperature", SamplingParams(temperature=-0.1)),
        ("temperature", SamplingParams(temperature=float("nan"))),
        ("top_k", SamplingParams(top_k=-1)),
        ("top_p", SamplingParams(top_p=0.0)),
        ("min_p", SamplingParams(min_p=1.5)),
        ("repetition_penalty", SamplingParams(repetition_penalty=0.0)),
        ("frequency_penalty", SamplingParams(frequency_penalty=float("inf"))),
        ("logit_bias", SamplingParams(logit_bias={VOCAB: 1.0})),
        ("logit_bias", SamplingParams(logit_bias={1: float("inf")})),
        ("logit_bias", SamplingParams(logit_bias={1: float("nan")})),
        ("bad_words", SamplingParams(bad_words=((),))),
        ("bad_words", SamplingParams(bad_words=((-1,),))),
        ("stop_token_ids", SamplingParams(stop_token_ids=tuple(range(100)))),
        ("logprobs", SamplingParams(logprobs=-1)),
        ("prompt_logprobs", SamplingParams(prompt_logprobs=10**6)),
    ],
)
def test_impossible_parameter_is_refused_by_name(field: str, params: SamplingParams) -> None:
    """A parameter that cannot be carried out names its field."""
    with pytest.raises(RequestRejected) as refused:
        validate_sampling(params, VOCAB, (EOS,))
    assert refused.value.field == field


class _Wordless(float):
    """A number that cannot be put into words."""

    def __repr__(self) -> str:
        raise AssertionError("it was put into words")

    __str__ = __repr__


def test_number_within_its_bounds_is_not_put_into_words() -> None:
    """Messages are made for who is refused: of a small job they were half of its check."""
    numbers = {name: _Wordless(0.5) for name in ("temperature", "top_p", "min_p")}
    validate_sampling(SamplingParams(**numbers, logit_bias={3: _Wordless(1.0)}), VOCAB, (EOS,))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="into words"):
        validate_sampling(SamplingParams(temperature=_Wordless(-1.0)), VOCAB, (EOS,))


def test_ordinary_parameters_are_accepted() -> None:
    """Defaults and every row of these tests pass validation."""
    for params in (SamplingParams(), *ROWS):
        validate_sampling(params, VOCAB, (EOS,))
