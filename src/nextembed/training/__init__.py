"""Training: one loop on accelerate, exact under accumulation and ranks, exact after a resume."""
