"""Mixtures of experts: which experts rows go to, and their products in few launches."""
