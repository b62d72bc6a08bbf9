"""Weight files on disk: safetensors shards, read tensor by tensor and checked."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from tokenbus.engine.errors import ModelBroken

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
# The format of sha256sum(1): "<hex digest>  <file name>" per line.
CHECKSUMS_NAME = "SHA256SUMS"


def shards(folder: Path) -> list[Path]:
    """Return the folder's safetensors files, those of the index if there is one.

    Raises: ModelBroken if there is none, or one that the index names is missing.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelBroken(f"{index} is not a safetensors index: {error}") from error
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelBroken(f"{folder} has a config but no *.safetensors weights")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelBroken(f"{folder} lacks {', '.join(missing)}, named in {INDEX_NAME}")
    return files


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the folder's shards by name, mapped from disk, one at a time.

    Raises: ModelBroken if a file is truncated or not safetensors.
    """
    for file in shards(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118 - a safe_open is no mapping
                    yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelBroken(f"{file} cannot be read: {error}; fetch it again") from error


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in the folder beside them."""
    lines = [
        f"{sha256_of(file)}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != CHECKSUMS_NAME
    ]
    (folder / CHECKSUMS_NAME).write_text("".join(lines))


def verify_checksums(folder: Path) -> None:
    """Compare the folder's files with its checksums, where it has any.

    Raises: ModelBroken naming the first file that is missing or differs.
    """
    sums = folder / CHECKSUMS_NAME
    if not sums.is_file():
        return
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        file = folder / name
        if not name or not file.is_file():
            raise ModelBroken(f"{folder} lacks {name or 'a file'} of its checksums; fetch it again")
        if sha256_of(file) != expected:
            raise ModelBroken(f"{file} does not match its sha256 checksum; fetch the model again")


def sha256_of(file: Path) -> str:
    """Return the file's sha256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
