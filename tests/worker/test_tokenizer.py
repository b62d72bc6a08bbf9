"""The tokenizer of the worker process: from its folder alone, without code of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.worker.errors import EngineStartFailed
from tokenbus.worker.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_NULL_ENGINES = """
import sys
from tokenbus.worker.tokenizer import import_library, load_tokenizer
import_library(has_model=False)
load_tokenizer(None, 512)
print("torch" in sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a sound tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    build_null_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_sound_folder_gives_its_tokenizer(folder: Path) -> None:
    """What was saved is read back."""
    saved = build_null_tokenizer()
    assert load_tokenizer(str(folder), 512).encode("hello") == saved.encode("hello")


def test_code_of_the_tokenizer_is_refused_without_a_question(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has no one to ask, and runs no code that came with a model."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    ran = folder / "ran"
    (folder / "tokenization_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    file = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    told = json.loads(file.read_text()) | {"tokenizer_class": "Own", "auto_map": auto_map}
    file.write_text(json.dumps(told))
    with pytest.raises(EngineStartFailed, match="such code is never run"):
        load_tokenizer(str(folder), 512)
    assert not ran.exists()


def test_links_out_of_the_folder_are_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The tokenizer's files are the folder's own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "tokenizer.json"
    (folder / "tokenizer.json").rename(elsewhere)
    (folder / "tokenizer.json").symlink_to(elsewhere)
    with pytest.raises(EngineStartFailed, match=r"tokenizer\.json of .* is a link to"):
        load_tokenizer(str(folder), 512)


@pytest.mark.processes
def test_null_engines_tokenizer_needs_no_torch() -> None:
    """Its import takes longer than all the rest of such a worker's start."""
    command = [sys.executable, "-P", "-c", _NULL_ENGINES]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.stdout == "False\n", run.stderr
