"""Image files of any origin to training batches and probe samples; imports nothing above `core`."""
