"""Models in use: captions, answers, pictures and continuations of what they are given."""
