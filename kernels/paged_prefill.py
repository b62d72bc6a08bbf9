"""Prefill attention: the tokens of several sequences over their pages, cached prefix included."""

from __future__ import annotations
