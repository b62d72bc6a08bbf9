"""JSON schemas read, combined, and written in the forms that the grammar library enforces."""
