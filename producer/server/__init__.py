"""Servers: their URLs, and connections to one, to a cluster, through sentinels, or embedded."""
