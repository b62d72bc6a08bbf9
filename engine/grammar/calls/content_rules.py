"""Grammar of content that satisfies a constraint, beside calls that the model is free to make."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.request_rules import LARK_BESIDE_TOOLS
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import escaped
from tokenbus.engine.grammar.calls.value_rules import json_value
from tokenbus.engine.grammar.json_schema import enforceable_schema
from tokenbus.engine.grammar.schema.refusal import CALL_STEPS, StepBudget
from tokenbus.engine.grammar.translation import choice_texts, parsed_source
from tokenbus.engine.types import GrammarKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenbus.engine.grammar.calls.value_rules import Schema
    from tokenbus.engine.types import GrammarSpec


class ContentRules:
    """The rule `content`: what satisfies the constraint and is not read as a call.

    schema: what is enforced of JSON; None of other constraints.
    """

    def __init__(
        self,
        spec: GrammarSpec,
        marks: Sequence[str],
        heads: Sequence[str],
        bare_names: Mapping[str, Sequence[str]],
    ) -> None:
        """Translate a constraint.

        Args:
            marks: those that open calls; texts hold none of them. JSON may: `WatchedAnswer`.
            heads: patterns with which calls begin that have no mark.
            bare_names: by the key of a name, those of tools whose calls begin as JSON.
        Raises: GrammarRejected for the field `grammar` if it cannot be enforced, RequestRejected
            if it cannot stand beside calls.
        """
        self.schema: Schema | None = None
        if spec.kind is GrammarKind.JSON_SCHEMA:
            # What is lexed as calls are has white space of its own, with which none is followed.
            self.schema = _uncalled(parsed_source(spec), bare_names)
            # Both may begin alike, and then have to be lexed alike.
            value = json_value(self.schema, is_exact=not bare_names)
            self.lines = [f"content: {value}"]
        elif spec.kind is GrammarKind.LARK:
            raise RequestRejected("grammar", LARK_BESIDE_TOOLS)
        else:
            if spec.kind is GrammarKind.CHOICE:
                told = f"({' | '.join(map(json.dumps, choice_texts(spec)))})"
            else:
                told = f"/{_in_slashes(spec.source)}/"
            barred = "".join(f" & ~/{pattern}/" for pattern in _barred(marks, heads))
            self.lines = ["content: CONTENT", f"CONTENT: {told}{barred}"]


def _barred(marks: Sequence[str], heads: Sequence[str]) -> Iterable[str]:
    if marks:
        yield f"(?s:.*)({'|'.join(map(escaped, marks))})(?s:.*)"
    if heads:
        yield f"({'|'.join(heads)})(?s:.*)"


def _in_slashes(pattern: str) -> str:
    """Spell a pattern as Lark does, between slashes and in one line."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern).replace("\n", r"\n")


def _uncalled(schema: Any, bare_names: Mapping[str, Sequence[str]]) -> Schema:
    """Return the enforceable schema of content that no reader takes for a call."""
    if bare_names:
        schema = {} if schema is True else schema
        calls = [
            {
                "type": "object",
                "properties": {key: {"enum": list(names)}},
                "required": [key],
            }
            for key, names in bare_names.items()
        ]
        listed = [{"type": "array", "prefixItems": [call], "minItems": 1} for call in calls]
        if isinstance(schema, Mapping):
            others = schema.get("allOf")
            others = others if isinstance(others, list) else []
            barred = [{"not": call} for call in (*calls, *listed)]
            schema = {**schema, "allOf": [*others, *barred]}
    budget = StepBudget(CALL_STEPS)
    enforceable = enforceable_schema(schema, is_watched=not bare_names, budget=budget)
    if enforceable is False:
        raise GrammarRejected("grammar", "JSON schema at #: nothing can satisfy it")
    return {} if enforceable is True else enforceable
