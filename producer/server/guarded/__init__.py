"""What a guard keeps: an embedded server's data folder, whose it is, and the process."""
