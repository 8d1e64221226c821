"""One feature vector per image: extraction, writing, search."""
