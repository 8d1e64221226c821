"""Nearest images among embedded ones, and retrieval scores."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...core.run_folder import find_saved
from ...data.rows import row_key, rows_in_order
from ...data.sources import ImageData
from ...errors import ConfigError, DataError
from .encoder import Checkpoint, Encoder, Picture, encode
from .index import FeatureIndex, open_features
from .stored import FeatureFile

SCORE_BYTES = 256 * 2**20  # similarities of a chunk of queries, while scoring
SCORE_QUERIES = 2_000
Bank = FeatureFile | FeatureIndex


class Hit(NamedTuple):
    """A row near the query. cosine in [-1, 1]; row: of the source; path, label, label_name: None where unknown."""

    rank: int
    cosine: float
    row: int
    key: str
    path: str | None
    label: int | None
    label_name: str | None


def search(
    features: str | os.PathLike[str] | Bank,
    query: Picture | Tensor,
    top: int = 12,
    checkpoint: Checkpoint | None = None,
) -> list[Hit]:
    """The rows nearest to a query, by cosine, nearest first; of equally near ones the first in the file.

    Args:
        features: a file that `embed` wrote, or a folder that `index` wrote.
        query: an image, which is embedded as the file's were, the key of a row (it is left out of the hits), or a
            feature vector [D].
        top: how many.
        checkpoint: where the model lies now, if it was moved.

    Returns:
        Hits with rank, cosine, key and label.

    Raises:
        ConfigError: for an unknown key, a file without features, or a model that is not the file's.
    """
    bank = features if isinstance(features, FeatureFile | FeatureIndex) else open_features(features)
    if top < 1:
        raise ConfigError(f"top should be at least 1, got {top}")
    vector, own = query_vector(bank, query, checkpoint)
    return nearest(bank, vector, top, own)


def query_vector(
    file: Bank, query: Picture | Tensor, checkpoint: Checkpoint | None = None
) -> tuple[Tensor, int | None]:
    """Features [D] of a query, and its row number if it is a row of the file."""
    if isinstance(query, Tensor):
        if query.shape != (file.width,):
            raise ConfigError(
                f"the query has shape {tuple(query.shape)}, features of {file.path} are {file.width} wide"
            )
        return query.float(), None
    if isinstance(query, str) and not Path(query).is_file():
        number = file.number_of(query)
        return file.vector(number), number
    return encode(encoder_of(file, checkpoint), query)[0], None


def encoder_of(file: Bank, checkpoint: Checkpoint | None = None) -> Encoder:
    """The encoder that embedded a file's images. Raises ConfigError if it is missing or has changed."""
    origin = file.origin
    checkpoint = checkpoint or origin.checkpoint
    if checkpoint is None:
        raise ConfigError(f"{file.path} does not record its model: give it with --checkpoint, or search by key")
    try:
        known = () if isinstance(checkpoint, nn.Module) else find_saved(checkpoint).folders
        weights = origin.weights if origin.weights in known else None
        encoder = Encoder(checkpoint, origin.layer, origin.pooling, origin.attention, weights, origin.precision)
    except ConfigError as err:
        raise ConfigError(f"the model of {file.path}: {err} (give its path with --checkpoint)") from None
    if encoder.width != file.width:
        raise ConfigError(
            f"{checkpoint} gives features of width {encoder.width}, those of {file.path} have width {file.width}"
        )
    if origin.weights_digest not in (None, encoder.digest()):
        raise ConfigError(
            f"the weights of {checkpoint} differ from those that {file.path} was embedded with: run nextembed "
            "embed again"
        )
    if origin.mean is not None and origin.std is not None and origin.background is not None:
        encoder.preprocessing = encoder.preprocessing._replace(
            mean=origin.mean, std=origin.std, background=origin.background
        )
    return encoder


def nearest(bank: Bank, vector: Tensor, top: int, leave_out: int | None = None) -> list[Hit]:
    """The `top` rows with the highest cosine to vector [D]."""
    cosines, numbers = bank.nearest(vector, top, leave_out)
    return [
        Hit(
            rank,
            round(min(1.0, cosine), 6),
            row.get("row", number),
            str(row.get("key", number)),
            row.get("path"),
            row.get("label"),
            row.get("label_name"),
        )
        for rank, (cosine, number, row) in enumerate(
            zip(cosines.tolist(), numbers.tolist(), bank.rows(numbers.tolist())), start=1
        )
    ]


class FolderHits(NamedTuple):
    """Hits by query, and why images were left out, both by key."""

    hits: dict[str, list[Hit]]
    skipped: dict[str, str]


def search_folder(
    bank: Bank, folder: str | os.PathLike[str], top: int = 12, checkpoint: Checkpoint | None = None
) -> FolderHits:
    """The rows nearest to each image of a folder, as `search` for each. Raises ConfigError for one without images."""
    encoder = encoder_of(bank, checkpoint)
    rows = ImageData(source=os.fspath(folder), folders="classes").rows("train")  # every image, in any folder
    found = FolderHits({}, {})
    for place, row in rows_in_order(rows):
        key = row_key(row, place.row - 1)
        try:
            vector = encode(encoder, row["image"])[0]
        except DataError as err:
            found.skipped[key] = str(err)
            continue
        found.hits[key] = nearest(bank, vector, top)
    return found


class Retrieval(NamedTuple):
    """Retrieval scores: means over queries, in [0, 1].

    recall_at_1: the nearest other image has the query's label. precision_at_k: share of the k nearest that have it.
    mean_average_precision: of the ranking of all images. chance: mean share of images with the query's label, about the
    value of each of the three for a random ranking. num_left_out: rows without a label, or with a label that no other
    has.
    """

    recall_at_1: float
    precision_at_k: float
    mean_average_precision: float
    chance: float
    k: int
    num_queries: int
    num_images: int
    num_left_out: int


def score(features: str | os.PathLike[str] | FeatureFile, k: int = 10, max_queries: int = SCORE_QUERIES) -> Retrieval:
    """Retrieval measures of a labelled file: each image is a query, all others with a label are searched.

    Args:
        features: a file that `embed` wrote.
        k: of precision@k.
        max_queries: of more images, so many are drawn with a fixed seed.

    Raises:
        DataError: without labels.
    """
    file = features if isinstance(features, FeatureFile) else FeatureFile(features)
    if "label" not in file.columns:
        raise DataError(f"{file.path} has no labels to score by")
    label_parts = [table.column("label").to_pylist() for _, table in file.groups(["label"])]
    labels = torch.tensor([-1 if label is None else int(label) for part in label_parts for label in part])
    known = labels >= 0
    counts = labels[known].bincount() if known.any() else torch.zeros(1, dtype=torch.long)
    usable = (known & (counts[labels.clamp(min=0)] > 1)).nonzero()[:, 0]
    if len(usable) == 0:
        raise DataError(f"{file.path}: no two rows share a label, so there is nothing to score by")
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))[:max_queries]
    queries = usable[order].sort().values
    vectors = file.gather(queries)
    sums = torch.zeros(3, dtype=torch.float64)
    for chunk in torch.arange(len(queries)).split(max(1, SCORE_BYTES // (16 * len(labels)))):
        cosine = torch.cat([vectors[chunk] @ bank.T for _, bank in file.unit_vectors()], dim=1)  # [q, N]
        cosine[:, ~known] = -torch.inf
        cosine[torch.arange(len(chunk)), queries[chunk]] = -torch.inf
        ranking = cosine.argsort(dim=1, descending=True, stable=True)[:, : int(known.sum()) - 1]
        alike = labels[ranking] == labels[queries[chunk], None]
        right = alike.double()
        precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
        average = (precision * right).sum(1) / right.sum(1)
        sums += torch.stack((right[:, 0].sum(), right[:, :k].mean(1).sum(), average.sum()))
    chance = ((counts[labels[queries]] - 1).double() / (int(known.sum()) - 1)).mean().item()
    first, at_k, average_precision = (sums / len(queries)).tolist()
    left_out = len(labels) - len(usable)
    return Retrieval(first, at_k, average_precision, chance, k, len(queries), int(known.sum()), left_out)
