"""Schemas as Pydantic writes them: nearly every field type compiles, both ways."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pydantic
import pytest
from models.constraints import schema_spec
from pydantic import BaseModel, Field, RootModel, TypeAdapter, create_model

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from tokenbus.engine.grammar.grammar import GrammarCompiler


class _Color(Enum):
    RED = "red"
    BLUE = "blue"


class _Level(IntEnum):
    LOW = 1
    HIGH = 2


class _Pair(NamedTuple):
    left: int
    right: str = "x"


@dataclass
class _Point:
    x: int
    tags: list[str]


class _Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class _Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class _Tree(BaseModel):
    value: int
    children: list[_Tree] = []


T = TypeVar("T")


class _Box(BaseModel, Generic[T]):
    content: T


class _Numbers(RootModel[list[int]]):
    pass


_NAMES: list[str] = []
for _line in (
    "StrictInt StrictStr StrictBool StrictFloat StrictBytes PositiveInt NegativeInt",
    "NonNegativeInt NonPositiveInt PositiveFloat NegativeFloat NonNegativeFloat",
    "NonPositiveFloat FiniteFloat UUID1 UUID3 UUID4 UUID5 UUID6 UUID7 UUID8 Base64Bytes",
    "Base64Str Base64UrlBytes Base64UrlStr FilePath DirectoryPath NewPath SecretStr",
    "SecretBytes Json ByteSize PastDate FutureDate PastDatetime FutureDatetime",
    "AwareDatetime NaiveDatetime ImportString JsonValue AnyUrl AnyHttpUrl HttpUrl",
    "FileUrl FtpUrl WebsocketUrl AnyWebsocketUrl PostgresDsn CockroachDsn AmqpDsn",
    "RedisDsn MongoDsn KafkaDsn NatsDsn MySQLDsn MariaDBDsn ClickHouseDsn SnowflakeDsn",
    "IPvAnyAddress IPvAnyInterface IPvAnyNetwork",
):
    _NAMES += _line.split()
# Types by name, those first that a short run has.
TYPES: dict[str, Any] = {
    "decimal": Decimal,
    "dict-of-literals": dict[Literal["a", "b"], int],
    "bytes": bytes,
    "uuid4": pydantic.UUID4,
    "discriminated": Annotated[_Cat | _Dog, Field(discriminator="kind")],
    "set-of-literals": set[Literal["a", "b"]],
    "tree": _Tree,
    "money": Annotated[Decimal, Field(max_digits=5, decimal_places=2, gt=0)],
    **{kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple, set, frozenset)},
    **{kind.__name__: kind for kind in (date, datetime, time, timedelta, UUID, Path, Fraction)},
    **{kind.__name__: kind for kind in (IPv4Address, IPv4Interface, IPv4Network)},
    **{kind.__name__: kind for kind in (IPv6Address, IPv6Network, _Color, _Level, _Pair, _Point)},
    **{name: getattr(pydantic, name) for name in _NAMES},
    "none": None,
    "any": Any,
    "pattern": Pattern[str],
    "union": _Cat | _Dog,
    "optional": int | None,
    "root": _Numbers,
    "generic": _Box[int],
    "literal": Literal["a", 1, True],
    "list": list[int],
    "set-of-numbers": set[int],
    "fixed-tuple": tuple[int, str],
    "open-tuple": tuple[int, ...],
    "deque": deque[int],
    "ordered": OrderedDict[str, int],
    "defaultdict": defaultdict[str, int],
    "counter": Counter[str],
    "by-enum": dict[_Color, int],
    "by-number": dict[int, str],
    "by-uuid": dict[UUID, int],
    "by-date": dict[date, int],
    "of-models": dict[str, _Tree],
    "bounded": Annotated[int, Field(gt=0, le=10, multiple_of=2)],
    "matched": Annotated[str, Field(pattern=r"^\d{3}-\d{4}$")],
    "short": Annotated[list[int], Field(min_length=1, max_length=3)],
    "long-decimal": Annotated[Decimal, Field(max_digits=10, decimal_places=4)],
    "shown": Annotated[str, Field(examples=["x"], deprecated=True, description="d")],
}
FEW = 8


@pytest.mark.parametrize("num", [FEW, pytest.param(len(TYPES), marks=pytest.mark.slow)])
def test_field_types_compile(num: int, compiler: GrammarCompiler) -> None:
    """At least 95 % of the types compile, alone and in a model; the rest has a pointer."""
    refused: dict[str, str] = {}
    for name, kind in list(TYPES.items())[:num]:
        model = create_model("Model", field=(kind, ...))
        for adapted in (TypeAdapter(kind), TypeAdapter(model)):
            for mode in ("validation", "serialization"):
                schema = adapted.json_schema(mode=mode)
                try:
                    compiler.compile(schema_spec(schema))
                except GrammarRejected as error:
                    refused[name] = str(error)
    print(num, refused)
    assert all("at #" in reason for reason in refused.values())
    assert len(refused) <= 0.05 * num
