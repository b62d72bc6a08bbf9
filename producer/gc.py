"""Python's garbage collector in processes that live long and must not pause."""

from __future__ import annotations

import gc

# Allocations between two looks at the youngest objects. Tokens are freed by their counts; with the
# default of 700 the collector looks several times per step and finds nothing.
_YOUNG_OBJECTS = 20_000


def freeze_startup_objects() -> None:
    """Leave everything that was built so far out of all collections to come.

    Half a million objects of imported libraries make a full collection a pause of a tenth of a
    second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
