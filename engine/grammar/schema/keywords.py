"""Keywords of JSON Schema: which assert, which say nothing about a value, which are refused.

JSON Schema has a validator ignore keywords that it does not know; a misspelled one then asserts
nothing, and nobody notices. So a word passes if no vocabulary gives it a meaning for values, unless
it looks like one that has.
"""

from __future__ import annotations

import difflib

# Keywords whose value is a schema, a map of schemas, or a list of schemas.
SCHEMA = frozenset(
    [
        "items", "additionalProperties", "additionalItems", "propertyNames", "contains", "not",
        "if", "then", "else", "unevaluatedProperties", "unevaluatedItems",
    ]
)  # fmt: skip
SCHEMA_MAP = frozenset(
    ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"]
)
SCHEMA_LIST = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_PLAIN = frozenset(
    [
        "type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum",
        "exclusiveMinimum", "maxLength", "minLength", "pattern", "format", "maxItems", "minItems",
        "uniqueItems", "maxContains", "minContains", "maxProperties", "minProperties", "required",
        "dependentRequired", "dependencies", "instanceof", "$ref", "$dynamicRef", "$recursiveRef",
    ]
)  # fmt: skip
ASSERTIONS = _PLAIN | SCHEMA | SCHEMA_MAP | SCHEMA_LIST
# Words that say nothing about a value; some look like an assertion. `discriminator` repeats what
# oneOf says.
ANNOTATIONS = frozenset(
    [
        "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary",
        "$comment", "title", "description", "default", "examples", "example", "deprecated",
        "readOnly", "readonly", "writeOnly", "discriminator", "xml", "externalDocs", "media",
        "links", "contentMediaType", "contentEncoding", "contentSchema", "name", "strict",
        "markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "enumNames",
        "defaultSnippets", "deprecationMessage", "doNotSuggest", "errorMessage",
    ]
)  # fmt: skip
# Words that assert something in older drafts, in OpenAPI, or in the vocabularies of validators.
_REFUSED = {
    "nullable": 'use "type": [..., "null"]',
    "divisibleBy": "use multipleOf",
    "disallow": "use not",
    "extends": "use allOf",
    "x-guidance": "it would change how the schema is enforced",
    "min": "use minimum, minLength or minItems",
    "max": "use maximum, maxLength or maxItems",
    "length": "use minLength and maxLength",
    "regex": "use pattern",
    "regexp": "use pattern",
    "range": "use minimum and maximum",
    "exclusiveRange": "use exclusiveMinimum and exclusiveMaximum",
    "formatMinimum": "use pattern",
    "formatMaximum": "use pattern",
    "formatExclusiveMinimum": "use pattern",
    "formatExclusiveMaximum": "use pattern",
    "patternRequired": "list what is required",
    "allRequired": "use required",
    "anyRequired": "use anyOf",
    "oneRequired": "use oneOf",
    "prohibited": "use properties with false",
    "typeof": "use type",
    "switch": "use anyOf",
    "select": "use anyOf",
    "selectCases": "use anyOf",
    "deepProperties": "use properties",
    "deepRequired": "use required",
    "transform": "use pattern",
    "$merge": "use allOf",
    "$patch": "use allOf",
    "$data": "write the value",
}
# Letters that a misspelled word shares with the right one, as a part of both: `minimun` 0.86,
# `maxLenght` 0.89, `requires` 0.94; `minSize` for `minItems` 0.53.
_ALIKE = 0.82
_LOWER = {word.lower(): word for word in ASSERTIONS}

# The keyword that marks a list without equal items in what is written for the library, which passes
# over it, and how its value begins.
MARK, MARKED_AT = "$comment", "uniqueItems at "


def mark_of(place: str) -> str:
    """Return the mark of a list, with the pointer to the schema that asks for it."""
    return MARKED_AT + place


def why_refused(word: str) -> str | None:
    """Return why a keyword that is not known to be enforced is refused, None if it passes."""
    if word in ANNOTATIONS:
        return None
    if word in _REFUSED:
        return f"not supported; {_REFUSED[word]}"
    if not word.isascii() or not word.isalpha():
        return None
    if word.lower() in _LOWER:
        return f"not a keyword; did you mean {_LOWER[word.lower()]!r}?"
    alike = difflib.get_close_matches(word, ASSERTIONS, 1, _ALIKE)
    return f"not a keyword; did you mean {alike[0]!r}?" if alike else None
