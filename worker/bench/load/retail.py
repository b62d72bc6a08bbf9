"""The retail workload: customers of a shop, all behind one long policy with its tools."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    import numpy as np

    from tokenbus.worker.bench.options import BenchOptions

# A token of English text or JSON under the vocabularies of current models.
_CHARACTERS_PER_TOKEN = 4
_GROUP = "retail"
# Any will do: the policy is everybody's.
_SHARED_WITH = "shared-by-all-tenants"


class Retail:
    """A policy and its tools as the system prompt, an instruction of a customer after it.

    As ids each piece of four characters is hashed to one: the lengths and what is shared are those
    of the texts, whatever the tokenizer. The file is JSON with `policy_system_prompt`, `tools`,
    and instructions under `tasks_test`, `tasks_dev` and `train_instructions`.
    """

    num_jobs = None

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        try:
            wire = json.loads(Path(options.retail_file or "").read_text())
            self._policy = str(wire["policy_system_prompt"])
            self._tools: list[dict[str, Any]] = list(wire["tools"])
            tasks = [*wire["tasks_test"], *wire["tasks_dev"]]
            self._instructions = [str(task["instruction"]) for task in tasks]
            self._instructions += [str(text) for text in wire["train_instructions"]]
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsInvalid(f"--retail-file: {error!r}") from None
        system = self._policy + "\n\n" + json.dumps(self._tools)
        self._system_ids = self._hashed(system)

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Return one customer's prompt."""
        low, high = self._options.output_tokens
        num_output = int(source.integers(low, high + 1))
        # Customers differ from the first own token on, also when instructions come round again.
        instruction = f"#{number} {self._instructions[number % len(self._instructions)]}"
        # Everybody reads the same policy, so its pages are shared between tenants.
        group = {
            "cache_group": f"{_GROUP}-{self._options.run_idx}",
            "cache_secret": _SHARED_WITH,
        }
        if self._options.as_text:
            messages = [
                {"role": "system", "content": self._policy},
                {"role": "user", "content": instruction},
            ]
            return group | {"messages": messages, "tools": self._tools}, num_output
        return group | {"token_ids": self._system_ids + self._hashed(instruction)}, num_output

    def _hashed(self, text: str) -> list[int]:
        content = text.encode()
        starts = range(0, len(content), _CHARACTERS_PER_TOKEN)
        pieces = (content[start : start + _CHARACTERS_PER_TOKEN] for start in starts)
        return [zlib.crc32(piece) % self._options.vocab_size for piece in pieces]
