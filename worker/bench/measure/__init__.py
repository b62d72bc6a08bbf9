"""The figures of a bench: taken at readers and workers, shown as tables and pages."""
