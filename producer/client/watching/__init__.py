"""Watching a pool: its figures as they change, the jobs that ended, and what needs a look."""
