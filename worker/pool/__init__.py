"""The pool's side of a worker: what it says to the queue and what the queue says to it."""
