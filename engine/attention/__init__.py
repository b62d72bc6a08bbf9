"""Attention over pages: one interface, one backend per kind of device."""
