"""What a model says or paints, measured: captions, answers, rankings, pictures."""
