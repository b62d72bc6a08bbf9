"""Scheduling: who runs in the next step and which pages it holds. No torch."""
