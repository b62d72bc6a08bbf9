"""Watches on an output beside its grammar: keys and items of lists that may not come twice."""
