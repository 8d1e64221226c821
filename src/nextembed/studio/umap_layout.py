"""A UMAP layout as a program of its own, so that it can be stopped: `python umap_layout.py VECTORS.npy LAYOUT.npy`."""

import sys

import numpy as np


def main(given: str, made: str) -> None:
    """Reads vectors [N, D] and writes their layout [N, 2]."""
    import umap

    vectors = np.load(given, allow_pickle=False)
    # With as few rows as neighbours, the spectral start has no solution.
    start = "spectral" if len(vectors) > 16 else "random"
    near = max(2, min(15, len(vectors) - 1))
    layout = umap.UMAP(random_state=0, n_jobs=1, metric="cosine", n_neighbors=near, init=start).fit_transform(vectors)
    np.save(made, layout)


if __name__ == "__main__":
    main(*sys.argv[1:])
