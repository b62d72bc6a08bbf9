"""The page of errors and the code name the same errors, codes and statuses."""

from __future__ import annotations

import inspect
import re

from house.error_codes import api_codes, is_written, job_codes
from house.modules import ROOT

from tokenbus.engine import errors as engine_errors
from tokenbus.producer import errors
from tokenbus.producer.contract import result
from tokenbus.worker import errors as worker_errors

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
# Bases, which nobody raises.
BASES = {errors.ProducerError, errors.ServerError, result.JobEndedEarly}


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_code_of_a_failed_job_has_a_cure() -> None:
    """What workers and scripts fail jobs with stands there, with what to do, and nothing else."""
    rows = {row[0].strip("`"): row for row in _rows("Codes of failed jobs")}
    assert rows.keys() == job_codes()
    assert all(told and cure for _, told, cure in rows.values())


def test_every_error_of_a_client_has_a_cure() -> None:
    """Each class that a client raises on purpose has a row; bases and errors of jobs have none."""
    found = {
        name
        for name, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.ProducerError) and each not in BASES
    }
    rows = _rows("Errors that a client raises")
    assert {row[0].strip("`") for row in rows} == found
    assert all(row[2] for row in rows)
    ends = {
        name
        for name, each in inspect.getmembers(result, inspect.isclass)
        if issubclass(each, result.JobEndedEarly) and each not in BASES
    }
    assert ends == set(re.findall(r"`(Job\w+)`", str(_rows("How a job ends"))))


def test_every_error_of_worker_and_engine_has_a_row() -> None:
    """Each class of their errors but the two bases."""
    found = {
        name
        for module in (engine_errors, worker_errors)
        for name, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Exception) and each.__base__ is not Exception
    }
    rows = _rows("Errors of workers and of the engine")
    assert set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))) == found


def test_every_error_over_http_has_a_row() -> None:
    """Status and code of whatever the gateway answers stand there; no row is of an error gone."""
    rows = {
        (int(row[0]), code)
        for row in _rows("Errors over HTTP")
        for code in re.findall(r"`(\w+)`", row[1])
    }
    assert api_codes() - rows == set()
    assert len(api_codes()) > 30
    assert {code for _, code in rows if not is_written(code) and code not in job_codes()} == set()
