"""Several objectives at equal cost, with seeds and baselines, as one table."""
