"""The page of models says what becomes of every form, and it is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import transformers
from models import forms_page
from models.causal_lms import variants, verdict_of

if TYPE_CHECKING:
    from pathlib import Path

FORMS = variants()


def test_page_has_a_row_for_every_form() -> None:
    """Every causal LM of the version that the page was made with is answered or refused."""
    if transformers.__version__ == forms_page.made_with():
        assert list(forms_page.rows()) == list(FORMS)
    assert len(forms_page.rows()) >= 200


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_form_becomes_what_its_row_says(name: str, tmp_path: Path) -> None:
    """Answered by the code that the row names, or refused in the row's words."""
    rows = forms_page.rows()
    if name not in rows and transformers.__version__ != forms_page.made_with():
        pytest.skip("the page was made with another version of transformers")
    assert verdict_of(FORMS[name], tmp_path) == rows[name]
