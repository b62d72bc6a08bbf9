"""The tokenbus engine: pages, scheduler, model and sampler, without any queue."""
