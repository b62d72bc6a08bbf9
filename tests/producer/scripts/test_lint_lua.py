"""The linter of the scripts finds each kind of mistake that it is there for."""

from __future__ import annotations

import pytest
from lua.lint import lint_all, lint_offers, lint_part, lint_script

from tokenbus.producer.scripts.source import parse_part

CLEAN = """#!lua
--@args job pages:number
--@use base: now_ms
-- A comment.
local function grown(by)
  return pages + by
end
for _, name in ipairs({ job }) do
  redis.call('SET', K.home .. name, now_ms(), 'EX', grown(1))
end
local last
repeat
  local done = redis.call('LLEN', job) > 3
  last = { [job] = done, at = #KEYS }
until done
return last.at
"""
MISTAKES = {
    "syntax": ("return last.at", "return last.", "does not parse"),
    "undefined name": ("pages + by", "pages + bye", "bye is not defined"),
    "name not taken from its library": ("now_ms()", "ring()", "ring is not defined"),
    "global of another Lua": ("#KEYS", "os", "os is not defined"),
    "key that is no key": ("'EX'", "K", "K is not defined"),
    "global assigned": ("last = {", "lost = {", "lost is assigned as a global"),
    "global function": ("local function grown", "function grown", "grown is assigned as a global"),
    "unused variable": ("local last", "local idle, last", "variable idle is not used"),
    "unused argument": ("grown(by)", "grown(by, of)", "argument of is not used"),
    "unused function": ("local last", "local function f() end\nlocal last", "function f is not"),
    "unused loop variable": ("for _, name", "for at, name", "variable at is not used"),
    "unused argument of the script": ("job pages", "job size pages", "argument size is not used"),
    "unused name of a library": ("base: now_ms", "base: now_ms ring", "name of lib/base ring is"),
    "shadowed variable": ("for _, name", "local name = 1\nfor _, name", "shadows another name"),
    "shadowed argument": ("grown(by)", "grown(pages)", "argument pages shadows another pages"),
    "shadowed global": ("grown(by)", "grown(type)", "argument type shadows a global"),
    "declared twice": ("local last", "local last\nlocal last", "variable last shadows another"),
    "newer Lua": ("pages + by", "pages // by", "is not Lua 5.1"),
}


def test_scripts_are_clean() -> None:
    """What `make lint` checks holds."""
    assert lint_all() == []


def test_clean_part_has_no_finding() -> None:
    """The linter knows what Lua allows: every part of the language that the scripts use."""
    assert lint_part(parse_part("made_up", CLEAN)) == []


@pytest.mark.parametrize("kind", MISTAKES)
def test_planted_mistake_is_found(kind: str) -> None:
    """Each kind of mistake is told, in words that name it."""
    old, new, told = MISTAKES[kind]
    assert CLEAN.count(old) == 1
    findings = lint_part(parse_part("made_up", CLEAN.replace(old, new)))
    assert any(told in finding.text for finding in findings), findings


def test_finding_names_file_and_line() -> None:
    """The line is that of the file, header counted."""
    [finding] = lint_part(parse_part("made_up", CLEAN.replace("pages + by", "pages + by + bye")))
    assert str(finding) == "producer/scripts/lua/made_up.lua:6: bye is not defined"


def test_name_that_two_parts_declare_is_found() -> None:
    """A library's own name must not hide that of another."""
    one = parse_part("lib/one", "local seen = {}")
    two = parse_part("two", "#!lua\n--@args seen\n")
    assert [finding.text for finding in lint_script([one, two])] == [
        "seen is declared by two parts of the script"
    ]


def test_name_that_nobody_uses_is_found() -> None:
    """A library offers what others need, and declares what it offers."""
    offering = parse_part("lib/one", "--@offers used idle\nlocal used, idle = 1, 2")
    using = parse_part("two", "#!lua\n--@use one: used\nreturn used")
    assert [finding.text for finding in lint_offers([offering, using])] == [
        "idle is offered and used by no other part"
    ]
    empty = parse_part("lib/one", "--@offers used\n")
    assert [finding.text for finding in lint_part(empty)] == ["used is offered and not declared"]
