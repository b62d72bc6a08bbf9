"""From tokens to logs: text, entries and the calls that write them, here or in other processes."""
