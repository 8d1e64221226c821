"""Data made for demonstrations: emoji scenes and documents, the candle. The same for ever from its seed."""
