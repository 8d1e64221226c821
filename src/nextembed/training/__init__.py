"""Training on transformers.Trainer: exact under accumulation and ranks, exact after a resume."""
