"""Mixtures of experts: a router, its experts and the shared one, bound to a device."""
