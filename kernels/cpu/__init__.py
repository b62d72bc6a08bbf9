"""The decoder on a CPU: C++ that is compiled on first use for the machine it runs on."""
