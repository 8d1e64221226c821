"""What frozen features hold, read by simple probes."""
