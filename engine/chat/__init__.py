"""Chat formats: how families of models write calls and reasoning, and the reader of answers."""
