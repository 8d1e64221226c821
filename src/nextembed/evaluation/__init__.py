"""Frozen features of a backbone, and what simple probes read from them."""
