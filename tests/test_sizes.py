"""Nothing grows past what one reads at once: functions, classes, files and rooms."""

from __future__ import annotations

from house.modules import ROOT, Module, Tree
from house.sizes import (
    LONG_FILE_LINES,
    MAX_FUNCTION_LINES,
    MAX_PUBLIC_METHODS,
    MAX_ROOM_MODULES,
    crowded_rooms,
    long_functions,
    unexplained_length,
    wide_classes,
)

MODULES = list(Tree.read().modules.values())


def test_functions_are_short() -> None:
    """No function outside the kernels has more than fifty lines."""
    measuring = [
        Module(path.relative_to(ROOT).as_posix(), path.read_text())
        for folder in ("benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    packages = [module for module in MODULES if not module.path.startswith("kernels/")]
    others = [*packages, *measuring]
    assert measuring
    offences = [found for module in others for found in long_functions(module)]
    assert not offences, "\n".join(offences)


def test_classes_are_narrow() -> None:
    """No class offers more than fifteen public methods."""
    offences = [found for module in MODULES for found in wide_classes(module)]
    assert not offences, "\n".join(offences)


def test_long_files_say_why_they_are_one() -> None:
    """Past three hundred lines the docstring says why the file is one noun."""
    offences = [found for module in MODULES for found in unexplained_length(module)]
    assert not offences, "\n".join(offences)


def test_rooms_are_not_crowded() -> None:
    """No folder holds more than sixteen modules at its level."""
    offences = crowded_rooms(MODULES)
    assert not offences, "\n".join(offences)


def test_planted_offences_of_size_are_seen() -> None:
    """Each check lets its bound pass and sees one more."""

    def function(lines: int) -> Module:
        return Module("engine/planted.py", "def f():\n" + "    x = 1\n" * (lines - 1))

    def methods(count: int) -> Module:
        body = "".join(f"    async def m{i}(self): ...\n" for i in range(count))
        return Module("engine/planted.py", f"class A:\n    def _own(self): ...\n{body}")

    def length(lines: int, docstring: str = "Words.") -> Module:
        return Module("engine/planted.py", f'"""{docstring}"""\n' + "x = 1\n" * (lines - 1))

    def room(count: int) -> list[Module]:
        names = ["__init__", *(f"m{i}" for i in range(count))]
        return [Module(f"engine/planted/{name}.py", "") for name in names]

    for at, past in (
        [long_functions(function(MAX_FUNCTION_LINES + more)) for more in (0, 1)],
        [wide_classes(methods(MAX_PUBLIC_METHODS + more)) for more in (0, 1)],
        [unexplained_length(length(LONG_FILE_LINES + more)) for more in (0, 1)],
        [crowded_rooms(room(MAX_ROOM_MODULES + more)) for more in (0, 1)],
    ):
        assert at == []
        assert len(past) == 1
    for excuse in ("It is one noun: the walk.", "It is one file because\nhalves need each other."):
        assert not unexplained_length(length(LONG_FILE_LINES + 1, excuse))
