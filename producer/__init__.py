"""The client side of tokenbus: submit jobs, stream tokens, own the Redis contract."""
