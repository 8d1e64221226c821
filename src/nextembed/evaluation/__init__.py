"""Evaluation: frozen features and probes, scores, benchmarks."""
