"""An engine without a model: real page accounting, made-up tokens."""
