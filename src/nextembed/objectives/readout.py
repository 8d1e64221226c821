"""Small decoders from frozen latents or predictions to values: pixels, mel frames, sensor readings. The backbone is
frozen; its copy in RUN/model and the decoders in RUN/readout belong together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.files import first_line
from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.saved import Number, checked, read_json
from ..core.sizes import MAX_LAYERS, MAX_WIDTH, building, check_sizes
from ..core.types import Backbone, Batch, DensityBackbone, Metrics, by_name
from ..errors import ConfigError, unknown
from ..modalities import MODALITIES
from ..nn.losses import mse
from ..nn.value_readout import Decoder, ValueReadout

Source = Literal["latents", "predictions"]

FOLDER = "readout"  # in the run folder
MARK = "nextembed_readout"  # in its config.json
BEGIN, FIRST = 1, 2  # kinds of packed documents
MARK_LENGTH, NUM_MARKS = 4, 4  # latents of each modality, and numbers of each, in a model's fingerprint


@OBJECTIVES.register("readout")
class ReadoutSettings(ObjectiveSettings):
    """Decoders from the latents of a frozen model of packed documents to values, one for each continuous modality.

    Attributes:
        source: "latents" are those of the signal itself; "predictions" are hidden states, each decoded to the latent
            that follows, so that values show what the model expects (blurred where it cannot know).
        decoder: "linear", "mlp", or "conv" over the grid of each segment, which reads finished signals only.
        width: width of "mlp" and "conv".
        num_layers: layers of "mlp" and "conv".
        modalities: names of those that are decoded; null takes all whose latents have values. The distance is the mean
            squared error.
    """

    task: ClassVar[str] = "multimodal"
    trains_backbone: ClassVar[bool] = False

    source: Source = "latents"
    decoder: Decoder = "linear"
    width: int = Field(256, gt=0, le=MAX_WIDTH)
    num_layers: int = Field(2, ge=1, le=MAX_LAYERS)
    modalities: list[str] | None = None

    def verdict(self, history: History) -> Verdict:
        """How well values are reconstructed, by modality, compared with the mean patch."""
        last = history[-1] if history else {}
        said = [
            f"{name} with a mean squared error of {value:.4f} (the mean patch: {last[f'mse_mean/{name}']:.4f})"
            for name, value in ((key.partition("/")[2], last[key]) for key in last if key.startswith("mse/"))
            if f"mse_mean/{name}" in last
        ]
        if not said:
            return Verdict("readout", "Readouts of a frozen model were trained; no error was logged.")
        return Verdict(
            "readout", f"Values are read back from a frozen model: {', '.join(said)}; on training documents."
        )

    def build(self, backbone: Backbone) -> "Readout":
        """Raises ConfigError if the backbone has no such modalities."""
        sizes = value_sizes(backbone)
        for name in self.modalities or ():
            if name not in sizes:
                raise ConfigError(unknown("objective.modalities:", name, sizes))
        chosen = list(sizes) if self.modalities is None else self.modalities
        if not chosen:
            raise ConfigError("objective readout: the model has no modality with values, only tokens")
        return Readout(self, backbone, {name: sizes[name] for name in chosen})


class Rows(NamedTuple):
    """Input and target of one modality in a batch. x [N, D]; target [N, P]; places [N, 3]; segments [N]; mask [N],
    bool: which are targets; the others are neighbours."""

    x: Tensor
    target: Tensor
    places: Tensor
    segments: Tensor
    mask: Tensor


class Readout(Objective):
    """The objective of `ReadoutSettings`: one term per modality, each a mean over its own latents. metrics, by
    modality: mse/NAME; mse_mean/NAME, that of always predicting the mean patch of the batch; psnr/NAME in dB, for
    values in [-1, 1].
    """

    settings: ReadoutSettings

    def __init__(self, settings: ReadoutSettings, backbone: Backbone, sizes: dict[str, int]):
        super().__init__(settings)
        readers = MODALITIES.without_weights(backbone.config.modalities)
        self.ranges = {name: 2 / readers[name].std for name in sizes}  # of values in [-1, 1]
        self.kinds = {name: FIRST + list(backbone.config.modalities).index(name) for name in sizes}
        width, causal = backbone.config.hidden_size, settings.source == "predictions"
        self.readouts = nn.ModuleDict({
            name: ValueReadout(width, size, settings.decoder, settings.width, settings.num_layers, causal)
            for name, size in sizes.items()
        })  # fmt: skip
        self.register_buffer("mark", model_mark(backbone, settings.source))

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of latents of each modality, [modalities]; for predictions only those that may be targets."""
        return torch.stack([self.counts(batch, kind).sum() for kind in self.kinds.values()])

    def counts(self, batch: Batch, kind: int) -> Tensor:
        """Positions [B, T] that are targets for the modality of this kind."""
        own = batch["kinds"] == kind
        return own & batch["latent_mask"] if self.settings.source == "predictions" else own

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        x = read_source(backbone, batch, self.settings.source)  # [B, T, D]
        segments = segment_numbers(batch)
        sums: list[Tensor] = []
        metrics: dict[str, Tensor | tuple[Tensor, Tensor]] = {}
        for name, kind in self.kinds.items():
            readout = self.readouts[name]
            rows = self.rows(name, kind, x, segments, batch)
            if not bool(rows.mask.any()):  # every rank has to reach every parameter in every step
                sums.append(torch.stack([p.sum() * 0.0 for p in readout.parameters()]).sum())
                continue
            found = readout(rows.x, rows.places, rows.segments).float()[rows.mask]
            target = rows.target[rows.mask]
            sums.append(mse(found, target).sum())
            if self.diagnose:
                metrics |= readout_metrics(name, found.detach(), target, self.ranges[name])
        return ObjectiveOutput(
            loss_sum=torch.stack(sums),
            num_targets=self.count_targets(batch),
            metrics=metrics if self.diagnose else None,
        )

    def rows(self, name: str, kind: int, x: Tensor, segments: Tensor, batch: Batch) -> Rows:
        """Input and target of one modality. A linear or mlp readout leaves out what is not a target; a conv one may
        read it."""
        own = batch["kinds"] == kind
        mask = self.counts(batch, kind)[own]
        rows = Rows(x[own], by_name(batch)[f"values.{name}"].float(), batch["coordinates"][own], segments[own], mask)
        return rows if self.settings.decoder == "conv" else Rows(*(part[mask] for part in rows))

    def folders(self, state: dict[str, Tensor]) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
        """RUN/readout, for `load_readouts`."""
        shapes = {name: readout.shape for name, readout in self.readouts.items()}
        values = {"kind": MARK, "source": self.settings.source, "readouts": shapes, "mark": state["mark"].tolist()}
        weights = {n.removeprefix("readouts."): t for n, t in state.items() if n.startswith("readouts.")}
        return {FOLDER: (values, weights)}


def value_sizes(backbone: Backbone) -> dict[str, int]:
    """Number of values per patch, for each modality with values. Raises ConfigError if the model does not read packed
    documents."""
    modalities = getattr(backbone.config, "modalities", None)
    if not isinstance(modalities, dict):
        raise ConfigError("objective readout needs a model of several modalities: model.kind=omni")
    readers = MODALITIES.without_weights(modalities)
    return {name: reader.value_size for name, reader in readers.items() if reader.value_size is not None}


@torch.no_grad()
def read_source(backbone: Backbone, batch: Batch, source: Source) -> Tensor:
    """The decoder's input at each position, [B, T, D]: its latent, or the prediction of it (0 at the first position;
    with a density its most likely direction). Sets the backbone to eval mode, so that nothing random changes the input
    and no statistics are updated.
    """
    backbone.eval()
    latents = backbone.embed(batch)
    if source == "latents":
        return latents.z
    last = backbone.encode(latents.until(latents.z.shape[1] - 1), attention="causal").last
    if isinstance(backbone, DensityBackbone):
        last = backbone.likeliest(last)
    return F.pad(last, (0, 0, 1, 0))


def segment_numbers(batch: Batch) -> Tensor:
    """A number for each segment, int64 [B, T], ascending in reading order; begin latents start them."""
    starts = batch["kinds"] == BEGIN
    starts[:, 0] = True
    return starts.flatten().cumsum(0).view_as(batch["kinds"])


@torch.no_grad()
def readout_metrics(name: str, found: Tensor, target: Tensor, span: float = 2.0) -> Metrics:
    """Of one modality, over rows [N, P] of values that lie within `span`; see `Readout`."""
    error, count = mse(found, target).sum(), torch.tensor(len(target), device=target.device)
    mean = mse(target.mean(0, keepdim=True), target).sum()
    psnr = 10 * torch.log10(span**2 / (error / count).clamp(min=1e-10))
    return {f"mse/{name}": (error, count), f"mse_mean/{name}": (mean, count), f"psnr/{name}": psnr}


def model_mark(backbone: Backbone, source: Source) -> Tensor:
    """A fingerprint of a model, of root mean square near 1: some latents of a document with a fixed pattern in each
    continuous modality."""
    training, sizes = backbone.training, value_sizes(backbone)
    weight = next(iter(backbone.parameters()))
    kinds: list[int] = []
    ids: list[int] = []
    batch: dict[str, Tensor] = {}
    for number, name in enumerate(backbone.config.modalities):
        if name in sizes:
            kinds += [BEGIN] + [FIRST + number] * MARK_LENGTH
            ids += [number] + [0] * MARK_LENGTH
            wave = torch.arange(MARK_LENGTH * sizes[name], dtype=torch.float32) * 0.37 + number
            batch[f"values.{name}"] = wave.sin().view(MARK_LENGTH, sizes[name])
    batch |= {"kinds": torch.tensor([kinds]), "input_ids": torch.tensor([ids])}
    batch["document_ids"] = torch.ones_like(batch["kinds"])
    batch["coordinates"] = F.pad(torch.arange(len(kinds), dtype=torch.float32)[None, :, None], (0, 2))
    batch = {name: part.to(weight.device) for name, part in batch.items()}
    x = F.normalize(read_source(backbone, batch, source)[0].float(), dim=-1)  # type: ignore[arg-type]
    backbone.train(training)
    picked = x[batch["kinds"][0] != BEGIN][:, :: max(1, x.shape[1] // NUM_MARKS)]
    return (picked.flatten() * backbone.config.hidden_size**0.5).cpu()


class LoadedReadouts:
    """Finished readouts. readouts: `ValueReadout` by modality, eval mode; source: what they decode; name: the run's."""

    def __init__(self, readouts: dict[str, ValueReadout], source: Source, mark: Tensor, name: str):
        self.readouts, self.source, self.mark, self.name = readouts, source, mark, name

    @torch.no_grad()
    def values(self, modality: str, latents: Tensor, places: Tensor) -> Tensor:
        """Values [N, P] of one segment: latents [N, D], of any length, in reading order, at positions [N, 3]. For
        `Modality.signal`, put them into natural order. Raises ConfigError for another modality."""
        if modality not in self.readouts:
            raise ConfigError(unknown(f"readouts of {self.name}:", modality, self.readouts))
        return self.readouts[modality](latents, places)

    def check(self, backbone: Backbone) -> str:
        """Empty if they were trained on this model; a sentence if on other weights of the same shape.

        Raises ConfigError if they were trained for another shape.
        """
        sizes = value_sizes(backbone)
        for name, readout in self.readouts.items():
            if name not in sizes:
                raise ConfigError(
                    f"the readouts in {self.name} are for a modality '{name}', which the model does not have"
                )
            for field, value in {"hidden_size": backbone.config.hidden_size, "value_size": sizes[name]}.items():
                if readout.shape[field] != value:
                    raise ConfigError(f"the readout of '{name}' in {self.name} was trained for {field} "
                                      f"{readout.shape[field]}; the model has {value}")  # fmt: skip
        mark = model_mark(backbone, self.source)
        same = mark.shape == self.mark.shape and bool((self.mark - mark).abs().max() < 0.05)
        return "" if same else f"{self.name} was trained on different weights than these"


@dataclass
class ReadoutsFile:
    """Content of RUN/readout/config.json. readouts: arguments of `ValueReadout` by modality."""

    source: Source
    readouts: dict[str, dict[str, Any]]
    mark: list[Number]


def load_readouts(path: str | Path) -> LoadedReadouts:
    """The readouts of a finished run, or of its folder RUN/readout.

    Raises ConfigError if there are none, or if their files are damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"no such readouts: {path}")
    folder = path / FOLDER if (path / FOLDER / "config.json").is_file() else path
    file, weights = folder / "config.json", folder / "model.safetensors"
    if not (file.is_file() and weights.is_file()):
        raise ConfigError(f"{path} contains no finished readouts: it has no {FOLDER}/config.json and weights")
    values = read_json(file)
    if not isinstance(values, dict) or values.get("kind") != MARK:
        raise ConfigError(f"{path} contains no readouts: train them with objective.kind=readout")
    saved = checked(ReadoutsFile, values, file)
    check_sizes(saved.readouts, str(file))
    with building(f"the readouts in {folder}"):
        readouts = nn.ModuleDict({name: ValueReadout(**shape) for name, shape in saved.readouts.items()})
    try:
        readouts.load_state_dict(load_file(weights))
    except Exception as err:  # whatever a broken file raises
        raise ConfigError(f"cannot load the readouts in {folder}: {first_line(err)}") from None
    name = path.parent.name if path.name == FOLDER else path.name
    found: Any = dict(readouts.eval().items())
    return LoadedReadouts(found, saved.source, torch.tensor(saved.mark), name or str(path))
