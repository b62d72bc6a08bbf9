"""Batches: files of requests, run as jobs of low priority, to files of answers."""
