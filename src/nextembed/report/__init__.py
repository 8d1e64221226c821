"""A run as plain values (`view`), and as one HTML page that needs nothing else (`page`)."""
