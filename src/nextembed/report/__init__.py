"""A run as plain values (`view`), and as one self-contained HTML page (`page`)."""
