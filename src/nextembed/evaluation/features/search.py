"""Nearest images in a file of features: exact, a row group at a time, so that the file need not fit in memory."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.files import from_json
from ...core.run_folder import find_saved
from ...core.saved import checked
from ...core.types import AttentionMode
from ...errors import ConfigError, DataError
from .encoder import Checkpoint, Encoder, Picture, encode
from .extract import Pooling, Precision
from .parts import METADATA

KEYS_COMPARED = 100_000  # for the nearest spelling of a key
SCORE_BYTES = 256 * 2**20  # similarities of a chunk of queries, while scoring
SCORE_QUERIES = 2_000


class StoredRow(TypedDict, total=False):
    """A row of a file of features, without them; other files may lack any of it."""

    row: int
    key: str
    path: str | None
    label: int | None
    label_name: str | None


class Hit(NamedTuple):
    """A row near the query. cosine in [-1, 1]; row: of the source; path, label, label_name: None where unknown."""

    rank: int
    cosine: float
    row: int
    key: str
    path: str | None
    label: int | None
    label_name: str | None


@dataclass
class Origin:
    """How a file was made: what of its metadata is read again. All is None where something else wrote it."""

    checkpoint: str | None = None
    weights: str | None = None
    weights_digest: str | None = None
    layer: int | None = None
    num_layers: int | None = None
    pooling: Pooling | None = None
    attention: AttentionMode | None = None
    precision: Precision = "float32"
    mean: float | None = None
    std: float | None = None
    background: tuple[int, int, int] | None = None
    data: dict[str, object] | None = None


class FeatureFile:
    """A file that `embed` wrote, or any Parquet file with a fixed-size list column "embedding".

    Raises ConfigError for a file that is none of this.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"no such features file: {path}")
        try:
            self.file = pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as err:
            raise ConfigError(f"{path} is not a Parquet file: {str(err).splitlines()[0]}") from None
        names = self.file.schema_arrow.names
        if "embedding" not in names:
            raise ConfigError(f"{path} has no column 'embedding'; its columns: {', '.join(names)}")
        kind = self.file.schema_arrow.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ConfigError(f"{path}: column 'embedding' should be a fixed-size list of floats, it is {kind}")
        self.width: int = kind.list_size
        self.columns = [name for name in names if name != "embedding"]
        self.num_rows: int = self.file.metadata.num_rows
        try:
            values = from_json((self.file.schema_arrow.metadata or {})[METADATA])
        except (KeyError, ValueError):
            values = {}
        self.origin = checked(Origin, values, self.path)

    def groups(self, columns: Sequence[str] = ()) -> Iterator[tuple[int, pa.Table]]:
        """(number of the first row, table) of each row group."""
        begin = 0
        for number in range(self.file.num_row_groups):
            table = self.file.read_row_group(number, columns=list(columns) or None)
            yield begin, table
            begin += table.num_rows

    def unit_vectors(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, [n, D] of length 1) of each row group. Raises DataError for features that are not
        finite."""
        for begin, table in self.groups(["embedding"]):
            values = _matrix(table)
            if (wrong := ~torch.isfinite(values).all(1)).any():
                raise DataError(
                    f"{self.path}: the features of row {begin + int(wrong.int().argmax())} are not finite numbers "
                    f"({int(wrong.sum())} of the {len(values)} rows from {begin} on); embed them anew"
                )
            yield begin, F.normalize(values.to(dtype), dim=1)

    def find(self, key: str) -> tuple[int, Tensor]:
        """Number and features [D] of the row with a key. Raises ConfigError, with the nearest spelling, if none has."""
        if "key" not in self.columns:
            raise ConfigError(f"{self.path} has no column 'key' to look '{key}' up in")
        seen: list[str] = []
        for number in range(self.file.num_row_groups):
            keys = self.file.read_row_group(number, columns=["key"]).column("key").to_pylist()
            if key in keys:
                begin = sum(self.file.metadata.row_group(g).num_rows for g in range(number))
                table = self.file.read_row_group(number, columns=["embedding"]).slice(keys.index(key), 1)
                return begin + keys.index(key), _matrix(table)[0]
            seen += keys[: max(0, KEYS_COMPARED - len(seen))]
        near = difflib.get_close_matches(key, [k for k in seen if k is not None], n=1)
        hint = f". Did you mean '{near[0]}'?" if near else f"; keys look like '{seen[0]}'" if seen else ""
        raise ConfigError(f"'{key}' is neither an image file nor a key in {self.path}{hint}")

    def rows(self, numbers: Sequence[int]) -> list[StoredRow]:
        """Everything but the features of some rows, in the order asked for."""
        found: dict[int, StoredRow] = {}
        begin = 0
        for group in range(self.file.num_row_groups):
            end = begin + self.file.metadata.row_group(group).num_rows
            if inside := [n for n in numbers if begin <= n < end]:
                table = self.file.read_row_group(group, columns=self.columns)
                taken = table.take([n - begin for n in inside]).to_pylist()
                found.update(zip(inside, taken))
            begin = end
        return [found[n] for n in numbers]


def _matrix(table: pa.Table) -> Tensor:
    """The features of a table, float32 [n, D]."""
    column = table.column("embedding").combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(values).view(len(column), -1)


def search(
    features: str | os.PathLike[str] | FeatureFile,
    query: Picture | Tensor,
    top: int = 12,
    checkpoint: Checkpoint | None = None,
) -> list[Hit]:
    """The rows nearest to a query, by cosine, nearest first; of equally near ones the first in the file.

    Args:
        features: a file that `embed` wrote.
        query: an image, which is embedded as the file's were, the key of a row (it is left out of the hits), or a
            feature vector [D].
        top: how many.
        checkpoint: where the model lies now, if it was moved.

    Raises:
        ConfigError: for an unknown key, a file without features, or a model that is not the file's.
    """
    file = features if isinstance(features, FeatureFile) else FeatureFile(features)
    if top < 1:
        raise ConfigError(f"top should be at least 1, got {top}")
    vector, own = query_vector(file, query, checkpoint)
    return nearest(file, vector, top, own)


def query_vector(
    file: FeatureFile, query: Picture | Tensor, checkpoint: Checkpoint | None = None
) -> tuple[Tensor, int | None]:
    """Features [D] of a query, and its row number if it is a row of the file."""
    if isinstance(query, Tensor):
        if query.shape != (file.width,):
            raise ConfigError(
                f"the query has shape {tuple(query.shape)}, features of {file.path} are {file.width} wide"
            )
        return query.float(), None
    if isinstance(query, str) and not Path(query).is_file():
        number, vector = file.find(query)
        return vector, number
    return encode(encoder_of(file, checkpoint), query)[0], None


def encoder_of(file: FeatureFile, checkpoint: Checkpoint | None = None) -> Encoder:
    """What embedded a file's images, loaded again. Raises ConfigError if it is gone, or no longer the same."""
    origin = file.origin
    checkpoint = checkpoint or origin.checkpoint
    if checkpoint is None:
        raise ConfigError(f"{file.path} does not say which model made it: name it with --checkpoint, or search by key")
    try:
        known = () if isinstance(checkpoint, nn.Module) else find_saved(checkpoint).folders
        weights = origin.weights if origin.weights in known else None
        encoder = Encoder(checkpoint, origin.layer, origin.pooling, origin.attention, weights, origin.precision)
    except ConfigError as err:
        raise ConfigError(f"the model of {file.path}: {err} (--checkpoint says where it lies)") from None
    if encoder.width != file.width:
        raise ConfigError(f"{checkpoint} gives features {encoder.width} wide, those of {file.path} are {file.width}")
    if origin.weights_digest not in (None, encoder.digest()):
        raise ConfigError(f"{checkpoint} has other weights than {file.path} was made with: embed anew")
    if origin.mean is not None and origin.std is not None and origin.background is not None:
        encoder.preprocessing = encoder.preprocessing._replace(
            mean=origin.mean, std=origin.std, background=origin.background
        )
    return encoder


def nearest(file: FeatureFile, vector: Tensor, top: int, leave_out: int | None = None) -> list[Hit]:
    """The `top` rows with the highest cosine to vector [D]."""
    unit = F.normalize(vector.double(), dim=0)
    best_cosine, best_row = torch.empty(0, dtype=torch.double), torch.empty(0, dtype=torch.long)
    for begin, bank in file.unit_vectors(torch.double):
        # A matrix product rounds by a row's place in it: equal rows are to be equally near.
        cosine = (bank @ unit).round(decimals=12)  # [n]
        if leave_out is not None and begin <= leave_out < begin + len(bank):
            cosine[leave_out - begin] = -2.0
        place = cosine.argsort(descending=True, stable=True)[:top]
        best_cosine = torch.cat((best_cosine, cosine[place]))
        best_row = torch.cat((best_row, place + begin))
        # Sorted by row first, and then stably: equal ones stay in the order of the file.
        by_row = best_row.argsort()
        best_cosine, best_row = best_cosine[by_row], best_row[by_row]
        keep = best_cosine.argsort(descending=True, stable=True)[:top]
        best_cosine, best_row = best_cosine[keep], best_row[keep]
    kept = best_row[best_cosine >= -1.5].tolist()
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
        for rank, (cosine, number, row) in enumerate(zip(best_cosine.tolist(), kept, file.rows(kept)), start=1)
    ]


class Retrieval(NamedTuple):
    """How often near means alike: means over queries, in [0, 1].

    recall_at_1: the nearest other image has the query's label. precision_at_k: share of the k nearest that have it.
    mean_average_precision: of the ranking of all images. chance: mean share of images with the query's label, what a
    random ranking would give for each of the three, about. num_left_out: rows without a label, or alone with theirs.
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
    vectors = _gather(file, queries)
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


def _gather(file: FeatureFile, numbers: Tensor) -> Tensor:
    """Unit vectors of some rows, by ascending number."""
    found = [
        bank[numbers[(numbers >= begin) & (numbers < begin + len(bank))] - begin] for begin, bank in file.unit_vectors()
    ]
    return torch.cat(found)
