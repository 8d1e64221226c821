"""Use of trained models: captions, answers, pictures and continuations."""
