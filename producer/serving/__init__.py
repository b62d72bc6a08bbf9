"""Child processes of one command: started, told of, restarted and ended together."""
