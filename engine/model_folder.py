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
)
# What a model's code in transformers raises, besides, where it does not run.
CODE_FAULTS = (*_FAULTS, RuntimeError, ImportError)
# What transformers reads below the folder itself.
_TEMPLATE_FOLDER = "additional_chat_templates"


def is_plain_name(name: str) -> bool:
    """Tell whether a name is that of a file in a folder, and no path."""
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in "/\\\0")


def refuse_outside(folder: Path) -> None:
    """Refuse a folder with links that lead out of it: its files are what was fetched with it.

    In a hub's cache the files are links into the folder `blobs` beside `snapshots`, which belongs
    to the same model.
    What is neither file nor folder, such as a pipe, could be waited for without end.
    Raises: ModelBroken naming the first link, or the first that is no file.
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


@contextmanager
def broken_if(folder: Path, part: str) -> Iterator[None]:
    """Turn any failure to parse the model's own files into ModelBroken.

    Code that the folder brings along is never run: to need it is ModelUnsupported.
    """
    # A third of a second that a worker's start can do without until it opens a model.

    try:
        yield
    except (*_FAULTS, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise ModelUnsupported(
                f"{part} of {folder} needs Python code that the model brings along (auto_map);"
                " such code is never run"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelBroken(f"{part} of {folder} cannot be used: {reason}") from error
