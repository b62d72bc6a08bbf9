"""Tool-call formats: the way each family of models writes its calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes calls.

    marker: begins the calls ("" = a call begins with its brace); repeated for each call if
    `is_repeated`, else the calls share `opening` and `closing`.
    """

    marker: str
    opening: str
    separator: str
    closing: str
    arguments_key: str
    is_repeated: bool

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """Write calls, given as names and JSON objects, the way the model would."""
        ones = [
            f'{{"name": "{name}", "{self.arguments_key}": {arguments}}}'
            for name, arguments in calls
        ]
        if self.is_repeated:
            return self.separator.join(
                f"{self.marker}{self.opening}{one}{self.closing}" for one in ones
            )
        return f"{self.marker}{self.opening}{self.separator.join(ones)}{self.closing}"


HERMES = ToolFormat("<tool_call>", "\n", "\n", "\n</tool_call>", "arguments", True)
MISTRAL = ToolFormat("[TOOL_CALLS]", "[", ", ", "]", "arguments", False)
LLAMA3 = ToolFormat("", "", "; ", "", "parameters", False)


def detect_tool_format(chat_template: str | None) -> ToolFormat:
    """Return the way of writing calls that a chat template shows the model.

    A template without tools gets the tagged JSON of Hermes, which most models imitate when told.
    """
    template = chat_template or ""
    if MISTRAL.marker in template:
        return MISTRAL
    if HERMES.marker not in template and "ipython" in template and '"parameters"' in template:
        return LLAMA3
    return HERMES
