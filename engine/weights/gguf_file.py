"""The GGUF reader: gguf's own, which takes what lies past a file's end for nothing at all."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np

# Above all tokens, merges and kinds of the largest vocabularies together.
_MAX_ITEMS = 2**21
# Of an array's items, before their number.
_KIND_BYTES = 4


class BoundedReader(gguf.GGUFReader):
    """Reads a file whose counts and lengths are anything at all.

    Raises: ValueError where it is not what it says, as gguf's own does.
    """

    _num_items = 0

    def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **named: Any) -> Any:
        found = super()._get(offset, dtype, count, *args, **named)
        if len(found) != int(count):
            raise ValueError("it ends within a field or a tensor")
        return found

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        # Each item of an array is an object of its own.
        self._num_items += 1
        if self._num_items > _MAX_ITEMS:
            raise ValueError(f"its fields have more than {_MAX_ITEMS} items")
        if raw_type == gguf.GGUFValueType.ARRAY:
            (length,) = self._get(orig_offs + _KIND_BYTES, np.uint64)
            if int(length) > len(self.data) - orig_offs:
                raise ValueError(f"it ends within an array of {length} items")
        return super()._get_field_parts(orig_offs, raw_type)
