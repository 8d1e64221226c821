"""Simple probes on frozen features."""
