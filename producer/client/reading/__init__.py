"""Reading jobs: streams and results of many jobs over one connection."""
