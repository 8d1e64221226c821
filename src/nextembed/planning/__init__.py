"""Estimates of a run before it starts: parameters, memory, FLOPs, hours. Only settings are read."""
