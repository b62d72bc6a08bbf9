"""The page of models says what becomes of every form, and it is so.

The page tells of the version of transformers that it names. Under another one a form may have other
code: it is answered as that code does all the same, or refused in a sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import transformers
from models import forms_page
from models.backends import cpu_backend
from models.causal_lms import BY_CONFIG, NOT_DRAWN, variants, verdict_of, write_any_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.weights.loader import load_model

if TYPE_CHECKING:
    from pathlib import Path

FORMS = variants()
_IS_OF_PAGE = transformers.__version__ == forms_page.made_with()


def test_page_has_a_row_for_every_form() -> None:
    """Every causal LM of the version that the page was made with is answered or refused."""
    if _IS_OF_PAGE:
        assert list(forms_page.rows()) == list(FORMS)
    assert len(forms_page.rows()) >= 200


def test_page_says_why_a_form_is_not_drawn() -> None:
    """Each with its reason."""
    assert forms_page.not_drawn() == NOT_DRAWN
    assert not set(NOT_DRAWN) & set(FORMS)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "musicgen" else pytest.param(name, marks=pytest.mark.slow)
        for name, reason in NOT_DRAWN.items()
        if reason.startswith(BY_CONFIG)
    ],
)
def test_form_that_is_not_drawn_is_refused_by_its_config(name: str, tmp_path: Path) -> None:
    """In the words of the page, and before anything is drawn."""
    if name not in CONFIG_MAPPING:
        pytest.skip("this version of transformers has no such family")
    write_any_config(name, tmp_path)
    reason = NOT_DRAWN[name].removeprefix(BY_CONFIG) if _IS_OF_PAGE else "."
    with pytest.raises((ModelBroken, ModelUnsupported), match=reason):
        load_model(tmp_path, cpu_backend(), random_weights=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_form_becomes_what_its_row_says(name: str, tmp_path: Path) -> None:
    """Answered by the code that the row names, or refused in the row's words."""
    verdict = verdict_of(FORMS[name], tmp_path)
    if _IS_OF_PAGE:
        assert verdict == forms_page.rows()[name]
    else:
        assert verdict.startswith(("answers: ", "refused: "))
