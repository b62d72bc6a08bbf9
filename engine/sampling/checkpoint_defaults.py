"""Sampling defaults of a checkpoint: what its generation config says a request means.

A request that leaves one of these fields out gets the checkpoint's number; one that is given counts
as given. `do_sample` is not among them: servers sample, and a temperature of 0 is greedy.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tokenbus.engine.sampling.bounds import NUMBERS
from tokenbus.engine.types import SamplingDefaults

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)


def sampling_defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    """Return the defaults in a generation config; what no request could ask for is left out.

    A warning names the field of each that is.
    """
    told: dict[str, Any] = {}
    for name in SamplingDefaults.__dataclass_fields__:
        value, bound = generation.get(name), NUMBERS[name]
        if name == "top_k" and value == -1:
            # Off, as some servers spell it.
            value = 0
        if value is None:
            continue
        is_number = isinstance(value, (int, bound.kind)) and not isinstance(value, bool)
        if (
            is_number
            and bound.low <= value <= bound.high
            and not (bound.is_open and value == bound.low)
        ):
            told[name] = bound.kind(value)
        else:
            _log.warning(
                "sampling.default_left_out: generation_config.json gives %s as %.60r, which no"
                " request could ask for; it is left out",
                name,
                value,
            )
    return SamplingDefaults(**told)
