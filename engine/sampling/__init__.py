"""The parts of the sampler: state of rows, logit rules, filters, the draw."""
