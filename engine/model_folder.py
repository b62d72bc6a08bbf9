"""The folder of a model: which of its files may be opened, and what their faults are called."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError

from tokenbus.engine.errors import ModelBroken, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What transformers and tokenizers raise over files that are not what they expect.
_FAULTS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    # JSON of many thousand brackets.
    RecursionError,
)
# What a model's code in transformers raises, besides, where it does not run.
CODE_FAULTS = (*_FAULTS, RuntimeError, ImportError)
# What transformers reads below the folder itself.
_TEMPLATE_FOLDER = "additional_chat_templates"
# Files that list a vocabulary or tensors, the largest of which take some ten megabytes, and the
# others that are read whole: both far above what any model has.
_LISTS = ("tokenizer.json", "vocab.json", "merges.txt", "*.index.json")
_MAX_LIST_BYTES, _MAX_TEXT_BYTES = 2**28, 2**24
_TEXTS = ("*.json", "*.jinja", "*.txt")
_MAX_REASON_CHARACTERS = 1000


def is_plain_name(name: str) -> bool:
    """Tell whether a name is that of a file in a folder, and no path."""
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in "/\\\0")


def refuse_outside(folder: Path) -> None:
    """Refuse a folder with links that lead out of it: its files are what was fetched with it.

    In a hub's cache the files are links into the folder `blobs` beside `snapshots`, which belongs
    to the same model.
    What is neither file nor folder, such as a pipe, could be waited for without end.
    Nor is there a text so large that reading it would take minutes and all memory.
    Raises: ModelBroken naming the first link, the first that is no file or the first too large.
    """
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append((root.parent.parent / "blobs").resolve())
    templates = folder / _TEMPLATE_FOLDER
    files = [*folder.iterdir(), *(templates.iterdir() if templates.is_dir() else ())]
    for file in sorted(files):
        if file.is_symlink() and not any(home in file.resolve().parents for home in homes):
            raise ModelBroken(
                f"{file.name} of {folder} is a link to {file.resolve()}, outside of the folder;"
                " put the file itself there"
            )
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ModelBroken(f"{file.name} of {folder} is neither a file nor a folder")
        if file.is_file():
            _refuse_length(file)


def _refuse_length(file: Path) -> None:
    if not any(file.match(pattern) for pattern in _TEXTS):
        return
    is_list = any(file.match(pattern) for pattern in _LISTS)
    most, found = _MAX_LIST_BYTES if is_list else _MAX_TEXT_BYTES, file.stat().st_size
    if found > most:
        raise ModelBroken(
            f"{file.name} of {file.parent} has {found} bytes, and at most {most} are read"
        )


def is_panic(error: BaseException) -> bool:
    """Tell whether an error is a panic of a library in Rust, which is no Exception.

    Its class is one of each library's own.
    """
    return type(error).__name__ == "PanicException"


def is_fault_of_file(error: BaseException) -> bool:
    """Tell whether an error is what libraries raise over files that they did not expect."""
    # The tokenizers library knows no other class than Exception itself, and panics.
    is_plain = type(error) is Exception or is_panic(error)
    return is_plain or isinstance(error, (*_FAULTS, StrictDataclassError))


@contextmanager
def broken_if(folder: Path, part: str) -> Iterator[None]:
    """Turn any failure to parse the model's own files into ModelBroken.

    Code that the folder brings along is never run: to need it is ModelUnsupported.
    """
    # A third of a second that a worker's start can do without until it opens a model.

    try:
        yield
    except BaseException as error:
        if not is_fault_of_file(error):
            raise
        if "trust_remote_code" in str(error):
            raise ModelUnsupported(
                f"{part} of {folder} needs Python code that the model brings along (auto_map);"
                " such code is never run"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        told = reason[:_MAX_REASON_CHARACTERS]
        raise ModelBroken(f"{part} of {folder} cannot be used: {told}") from error
