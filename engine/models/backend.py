"""A backend: how a device runs a model, said in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.parallel.group import ALONE, RankGroup

if TYPE_CHECKING:
    import torch

    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.interfaces import PagedAttention
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.ops import Ops
    from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend(ABC):
    """What loader, engine and benches ask about a device; made for one model, whose state it has.

    A backend says it all for one rank. Where several ranks run a model, each has a backend of its
    own, and one scheduler plans for all.

    Attributes:
        device: where weights, pages and rows are.
        attention: what all layers attend through.
        page_size: tokens per page unless the configuration says otherwise.
        captures_steps: steps become CUDA graphs, unless the configuration says otherwise.
        runs_ahead: a step is launched before the one before it was read back.
        narrow_tables: block tables are cut to the longest sequence of a pass, which gathers faster;
            where kernels are compiled apart for their width, they keep one width.
        has_device_clock: kernels run beside the host, and events of the device tell their time.
        group: the ranks that run the model together, each by a backend of its own.
        groups_int4: weights that are rounded to four bits get whole zero points per 128 inputs.
    """

    device: torch.device
    attention: PagedAttention
    page_size: int = 16
    captures_steps: bool = False
    runs_ahead: bool = False
    narrow_tables: bool = True
    has_device_clock: bool = False
    groups_int4: bool = False
    group: RankGroup = ALONE

    @property
    @abstractmethod
    def sharing(self) -> PrefixSharing | None:
        """Return the attention if it can read shared runs together, and say where that pays."""

    @abstractmethod
    def check(self, config: EngineConfig) -> None:
        """Accept a configuration that this backend can carry out.

        Raises: RequestRejected with the setting's name and the reason.
        """

    @abstractmethod
    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:
        """Return the fastest steps for a decoder whose weights are of `dtype`."""

    @abstractmethod
    def weights_dtype(self, stored: torch.dtype | None) -> torch.dtype:
        """Return the best dtype for a checkpoint that is stored in `stored` (None: unknown)."""

    def kv_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Return the dtype of keys and values in their pages: that of the weights.

        A backend whose attention reads narrower pages says so here.

        Raises: RequestRejected if the configuration asks for one that these weights cannot have.
        """
        return weights

    @abstractmethod
    def page_memory_bytes(self, config: EngineConfig) -> float:
        """Return how many bytes pages may take once the weights are in memory."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Name the device under `device`, and the versions of what only this backend uses."""
