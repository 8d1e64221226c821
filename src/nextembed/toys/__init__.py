"""Data for demonstrations, made from a seed: emoji scenes and documents, moving emoji, the candle test."""
