"""Traces of jobs: what of a job becomes spans, and the process that makes and sends them."""
