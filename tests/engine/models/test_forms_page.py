"""The page of models says what becomes of every form, and it is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import transformers
from models import forms_page
from models.backends import cpu_backend
from models.causal_lms import BY_CONFIG, NOT_DRAWN, any_config_of, variants, verdict_of
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.weights.loader import load_model

if TYPE_CHECKING:
    from pathlib import Path

FORMS = variants()


def test_page_has_a_row_for_every_form() -> None:
    """Every causal LM of the version that the page was made with is answered or refused."""
    if transformers.__version__ == forms_page.made_with():
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
    any_config_of(name).save_pretrained(tmp_path)
    reason = NOT_DRAWN[name].removeprefix(BY_CONFIG)
    with pytest.raises(ModelUnsupported, match=reason):
        load_model(tmp_path, cpu_backend(), random_weights=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_form_becomes_what_its_row_says(name: str, tmp_path: Path) -> None:
    """Answered by the code that the row names, or refused in the row's words."""
    rows = forms_page.rows()
    if name not in rows and transformers.__version__ != forms_page.made_with():
        pytest.skip("the page was made with another version of transformers")
    assert verdict_of(FORMS[name], tmp_path) == rows[name]
