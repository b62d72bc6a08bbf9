"""What an output is followed for beside its grammar: items of lists that may not come twice."""
