"""Weight files on disk: safetensors shards, read tensor by tensor and checked."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.model_folder import is_plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# The format of sha256sum(1): "<hex digest>  <file name>" per line.
CHECKSUMS_NAME = "SHA256SUMS"
# A head of a safetensors file names its tensors, and takes about 100 bytes for each.
_HEAD_BYTES = 65_536
# Tuned weights differ everywhere, so that few samples meet it.
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096
# The library's errors quote what they could not read.
_MAX_REASON_CHARACTERS = 1000


def shards(folder: Path) -> list[Path]:
    """Return the folder's safetensors files: those of the index, model.safetensors, or all.

    Raises: ModelBroken if there is none, one that the index names is missing or no plain file name.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        files = [folder / name for name in sorted(set(_weight_map(index).values()))]
    elif (folder / SINGLE_NAME).is_file():
        files = [folder / SINGLE_NAME]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelBroken(f"{folder} has a config but no *.safetensors weights")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelBroken(f"{folder} lacks {', '.join(missing)}, named in {INDEX_NAME}")
    return files


def tensor_dtypes(folder: Path) -> dict[str, str]:
    """Return the dtype of every tensor in the folder's shards, as safetensors calls it, by name.

    Raises: ModelBroken if a file is truncated or not safetensors, if a tensor stands in two files,
        or in another one than the index says.
    """
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for file in shards(folder):
        with _readable(file), safe_open(file, framework="pt", device="cpu") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safe_open is no mapping
                if name in places:
                    raise ModelBroken(f"{name} stands in {places[name]} and in {file.name}")
                found[name] = shard.get_slice(name).get_dtype()
                places[name] = file.name
    index = folder / INDEX_NAME
    for name, place in _weight_map(index).items() if index.is_file() else ():
        if places.get(name) != place:
            raise ModelBroken(f"{INDEX_NAME} of {folder} says that {name} is in {place}: it is not")
    return found


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the folder's shards by name, mapped from disk, one at a time.

    Raises: ModelBroken if a file is truncated or not safetensors.
    """
    for file in shards(folder):
        with _readable(file), safe_open(file, framework="pt", device="cpu") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safe_open is no mapping
                yield name, shard.get_tensor(name)


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor, by the index."""
    try:
        found = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelBroken(f"{index} is not a safetensors index: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ModelBroken(f"{index} is not a safetensors index: its weight_map is empty")
    for name, file in found.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise ModelBroken(
                f"{index} names {file!r} as the file of {name}, which is no file name"
            )
    return found


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn failures to read a safetensors file into ModelBroken."""
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        told = str(error)[:_MAX_REASON_CHARACTERS]
        raise ModelBroken(f"{file} cannot be read: {told}; fetch it again") from error


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
        if name and not is_plain_name(name):
            raise ModelBroken(f"{sums} names {name!r}, which is no file name")
        if not name or not file.is_file():
            raise ModelBroken(f"{folder} lacks {name or 'a file'} of its checksums; fetch it again")
        if sha256_of(file) != expected:
            raise ModelBroken(f"{file} does not match its sha256 checksum; fetch the model again")


def sha256_of(file: Path) -> str:
    """Return the file's sha256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checkpoint_digest(folder: Path) -> str:
    """Return 12 hexadecimal digits of the weights in a folder, wherever it lies.

    It tells apart workers that serve different weights under one name. All of a large model takes
    minutes to read; the head of each file and samples of its tensors do not.

    Raises: ModelBroken where there are none; OSError.
    """
    digest = hashlib.sha256()
    for file in shards(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HEAD_BYTES))
            for number in range(_NUM_SAMPLES):
                stream.seek(size * number // _NUM_SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]
