"""From files of any source to training batches and probe samples; imports nothing above `core`."""
