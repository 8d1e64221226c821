"""One feature vector an image: extracted, written, searched."""
