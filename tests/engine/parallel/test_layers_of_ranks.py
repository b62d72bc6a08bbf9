"""A GPU's layers with the sums of ranks in them: what a peer without weights adds is nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.few_answers import few_answers
from models.rank_boxes import RankBoxes
from models.triton_model import DEVICE, TINY_SIZES, triton_backend
from transformers import AutoModelForCausalLM, LlamaConfig

from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.parallel.collective import Alone
from tokenbus.engine.weights.loader import LoadedModel, build_model
from tokenbus.engine.weights.readers import choose_reader
from tokenbus.kernels.exchange import EMPTY_BYTE, NUM_SIDES

if TYPE_CHECKING:
    from tokenbus.kernels.exchange import Boxes


class _WithIdlePeer(Alone):
    """Rank 0 of two, with all of the model."""

    size = 2

    def __init__(self, boxes: Boxes) -> None:
        self.boxes = boxes


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_summed_layers_equal_those_of_one_rank(
    quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row, few rows and prompts of many: tokens are those of layers without sums."""
    torch.manual_seed(0)
    # Of one layer: the peer's zeros are there once for each of its two sums.
    config = LlamaConfig(**(TINY_SIZES | {"num_hidden_layers": 1}))
    auto: Any = AutoModelForCausalLM
    weights = auto.from_config(config).state_dict()
    ranks, num_passes = RankBoxes(2, DEVICE, place_bytes=1 << 16), 0
    plain: Any = Decoder.forward

    def beside_peer(decoder: Any, *given: Any) -> torch.Tensor:
        nonlocal num_passes
        ranks.memory.zero_()
        hidden: torch.Tensor = plain(decoder, *given)
        # Both sums have taken what the peer sent, at least two bytes a number.
        places = [ranks.place(0, side, 1, 2 * hidden.numel()) for side in range(NUM_SIDES)]
        assert all((place == EMPTY_BYTE).all() for place in places)
        num_passes += 1
        return hidden

    found = []
    for has_peer in (False, True):
        backend = triton_backend(32)
        model: Any = build_model(
            config, weights, backend, dtype=torch.bfloat16, max_model_len=1024,
            reader=choose_reader(quantization, grouped=True),
        )  # fmt: skip
        if has_peer:
            model.ops.ranks = _WithIdlePeer(ranks.boxes[0])
            model.ops.prepare(model.tensors)
            monkeypatch.setattr(Decoder, "forward", beside_peer)
        loaded = LoadedModel(model, config, None, (), 1024, "tiny", torch.bfloat16, backend)
        found.append(few_answers(loaded)[0])
    assert found[0] == found[1]
    assert num_passes > 2
