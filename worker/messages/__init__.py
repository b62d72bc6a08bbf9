"""Messages between the processes of a worker: the engine's and the publishers'."""
