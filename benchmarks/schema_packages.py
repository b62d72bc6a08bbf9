"""Schemas of published packages: how many compile, and why the others do not.

Usage: python benchmarks/schema_packages.py [FOLDER]. It fetches the packages named here with npm
and pip into FOLDER, takes every JSON file of theirs that is a JSON schema (30 a package at most,
none that refers to another document: a request carries one), and compiles each with the tokenizer
of SmolLM2-135M. `tests/engine/grammar/test_field_types.py` has the types of Pydantic.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.types import GrammarKind, GrammarSpec
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from collections.abc import Iterator

NPM = [
    "@angular-devkit/build-angular@21.2.24",
    "@nestjs/schematics@11.1.0",
    "@ngrx/schematics@22.0.1",
    "@nx/angular@23.2.1",
    "@nx/eslint@23.3.1",
    "@nx/js@23.3.1",
    "@nx/next@23.2.1",
    "@nx/react@23.3.1",
    "@nx/vite@23.2.1",
    "@nx/workspace@23.3.1",
    "@schematics/angular@21.2.28",
    "ajv@8.20.0",
    "babel-loader@10.1.1",
    "copy-webpack-plugin@14.0.0",
    "css-loader@7.1.5",
    "html-validate@10.17.0",
    "postcss-loader@8.2.1",
    "sass-loader@16.0.8",
    "terser-webpack-plugin@5.6.1",
    "webpack@5.113.0",
    "webpack-dev-server@5.2.7",
]
PYPI = [
    "ansible-lint==26.10.1",
    "check-jsonschema==0.39.0",
    "cyclonedx-python-lib==11.12.0",
    "frictionless==5.21.0",
    "great-expectations==1.24.1",
    "jupyterlab==4.6.6",
    "nbformat==5.11.1",
    "ocpp==2.1.0",
    "openapi-spec-validator==0.9.0",
    "validate-pyproject==0.27",
]
MOST_OF_PACKAGE, MOST_BYTES = 30, 262_144
_MARKS = {"properties", "$ref", "oneOf", "anyOf", "allOf", "definitions", "$defs", "items", "enum"}


def fetch(folder: Path) -> list[Path]:
    """Fetch all packages that are not there yet; return their archives."""
    if not any(folder.glob("*.tgz")):
        npm = shutil.which("npm") or "npm"
        for package in NPM:
            subprocess.run([npm, "pack", "--silent", package], cwd=folder, check=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*pip, *PYPI], check=True)
    return sorted([*folder.glob("*.tgz"), *folder.glob("*.whl"), *folder.glob("*.tar.gz")])


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the JSON files of an archive, by name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if name.endswith(".json"):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda one: one.name):
            file = tar.extractfile(member) if member.name.endswith(".json") else None
            if file is not None:
                yield member.name, file.read()


def is_schema(value: Any) -> bool:
    """Tell whether a value of JSON says that it is a schema, or looks like one of an object."""
    if not isinstance(value, dict):
        return False
    is_declared = "json-schema.org" in str(value.get("$schema")) and _MARKS & set(value)
    looks_so = value.get("type") == "object" and isinstance(value.get("properties"), dict)
    return bool(is_declared) or looks_so


def schemas(archives: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield place and source of each schema, no two alike."""
    seen: set[str] = set()
    for archive in archives:
        num = 0
        for name, content in members(archive):
            if len(content) > MOST_BYTES or "test" in name or num >= MOST_OF_PACKAGE:
                continue
            try:
                value = json.loads(content)
            except ValueError:
                continue
            source = json.dumps(value)
            if is_schema(value) and source not in seen:
                seen.add(source)
                num += 1
                yield f"{archive.name}: {name}", source


def main() -> None:
    """Print a row for each reason, and the schemas behind it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "schema-packages")
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model_store.pull("smollm2-135m"))
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (tokenizer.eos_token_id,))
    reasons: Counter[str] = Counter()
    num_compiled = num_fragments = 0
    slowest_s = 0.0
    for place, source in schemas(fetch(folder)):
        begins = time.process_time()
        try:
            compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, source))
            num_compiled += 1
        except GrammarRejected as error:
            message = str(error).removeprefix("grammar: json_schema: ")
            if "outside of this schema" in message:
                num_fragments += 1
                continue
            print(f"{place}\n    {message[:200]}")
            reasons[message.partition(" at #")[0]] += 1
        slowest_s = max(slowest_s, time.process_time() - begins)
    total = num_compiled + reasons.total()
    print(
        f"\n{num_compiled} of {total} compile ({num_compiled / total:.1%}), the slowest step took"
    )
    print(f"{slowest_s:.2f} s of processor time; {num_fragments} refer to other documents.")
    for reason, num in reasons.most_common():
        print(f"{num:4} {reason}")


if __name__ == "__main__":
    main()
