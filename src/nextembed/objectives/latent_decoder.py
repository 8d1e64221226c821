"""A small decoder from frozen latents or predictions to pixels, which shows what they contain. The backbone is frozen;
its copy in RUN/model and the decoder in RUN/decoder belong together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import Tensor

from ..core.files import first_line
from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.saved import Number, checked, read_json
from ..core.sizes import MAX_LAYERS, MAX_WIDTH, building
from ..core.types import Backbone, Batch, PatchConfig, reads_clips
from ..errors import ConfigError
from ..nn.losses import l1, masked_sum, mse
from ..nn.readout import LatentDecoder, to_patches

Source = Literal["latents", "predictions"]
Size = Annotated[int, Field(gt=0, le=4 * MAX_WIDTH)]

FOLDER = "decoder"  # in the run folder
MARK = "nextembed_latent_decoder"  # in its config.json
NUM_MARKS = 8


@OBJECTIVES.register("latent_decoder")
class LatentDecoderSettings(ObjectiveSettings):
    """A decoder from the latents of a frozen model to the pixels of each patch.

    Attributes:
        source: "latents" are those of the image itself; "predictions" are hidden states, each decoded to the patch that
            follows, so that pixels show what the model expects (blurred where it cannot know).
        distance: between pixels, "mse" | "l1".
        edge_weight: factor of the same distance between neighbouring pixels' differences within a patch, which sharpens
            edges.
        width: width of the decoder, a causal transformer over the patches.
        num_layers: layers of the decoder.
        num_heads: heads of each layer of it.
    """

    trains_backbone: ClassVar[bool] = False

    source: Source = "latents"
    distance: Literal["mse", "l1"] = "mse"
    edge_weight: float = Field(0.0, ge=0, le=1e6)
    width: int = Field(192, gt=0, le=MAX_WIDTH)
    num_layers: int = Field(2, ge=1, le=MAX_LAYERS)
    num_heads: int = Field(4, gt=0, le=MAX_WIDTH)

    @model_validator(mode="after")
    def _fits(self) -> "LatentDecoderSettings":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}")
        return self

    def verdict(self, history: History) -> Verdict:
        """How well pixels are reconstructed, compared with the mean colour of each patch.

        Args:
            history: logged lines, oldest first.

        Returns:
            A word and a sentence.
        """
        lines = [line for line in history if "psnr" in line and "psnr_flat" in line]
        if not lines:
            return Verdict("decoder", "A decoder of a frozen model was trained; no PSNR was logged.")
        found, flat = lines[-1]["psnr"], lines[-1]["psnr_flat"]
        sentence = f"Pixels are read back from a frozen model with a PSNR of {found:.1f} dB on training images"
        return Verdict("decoder", f"{sentence}; the mean colour of each patch would reach {flat:.1f} dB.")

    def build(self, backbone: Backbone) -> "LatentDecoding":
        """Makes the objective.

        Args:
            backbone: a model of image patches.

        Returns:
            The module.

        Raises:
            ConfigError: the backbone does not read image patches.
        """
        if not isinstance(backbone.config, PatchConfig):
            raise ConfigError("objective latent_decoder needs a model of image patches: its config has no patch_shape")
        if reads_clips(backbone.config):
            raise ConfigError("objective latent_decoder supports image models only; this one reads clips")
        return LatentDecoding(self, backbone)


class LatentDecoding(Objective):
    """The objective of `LatentDecoderSettings`; targets are patches, compared in normalised pixels."""

    settings: LatentDecoderSettings

    def __init__(self, settings: LatentDecoderSettings, backbone: Backbone):
        super().__init__(settings)
        config = backbone.config
        self.decoder = LatentDecoder(
            config.hidden_size,
            config.patch_shape,
            config.num_channels,
            settings.width,
            settings.num_layers,
            settings.num_heads,
        )
        self.register_buffer("mark", model_mark(backbone, settings.source))

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of patches."""
        return batch["latent_mask"][:, 1:].sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        x = read_source(backbone, batch["pixel_values"], self.settings.source)  # [B, P, D]
        patch_shape = self.decoder.patch_shape
        target = to_patches(batch["pixel_values"].float(), patch_shape)  # [B, P, C * h * w]
        height, width = batch["pixel_values"].shape[-2:]
        found = self.decoder(x, (height // patch_shape[0], width // patch_shape[1])).float()
        mask = batch["latent_mask"][:, 1:]
        loss, _ = masked_sum(self.distance(found, target), mask)
        return ObjectiveOutput(
            loss_sum=loss,
            num_targets=self.count_targets(batch),
            metrics=decoding_metrics(found.detach(), target, mask, backbone.config.num_channels)
            if self.diagnose
            else None,
        )

    def distance(self, found: Tensor, target: Tensor) -> Tensor:
        """Mean over the pixels of each patch, [B, P, C * h * w] -> [B, P]."""
        measure = mse if self.settings.distance == "mse" else l1
        loss = measure(found, target)
        if self.settings.edge_weight > 0:
            shape = (self.decoder.shape["num_channels"], *self.decoder.patch_shape)
            for axis in (-1, -2):
                edges, wanted = (x.unflatten(-1, shape).diff(dim=axis).flatten(2) for x in (found, target))
                if edges.shape[-1]:  # a patch of one pixel has no neighbours inside
                    loss = loss + self.settings.edge_weight * measure(edges, wanted)
        return loss

    def folders(self, state: dict[str, Tensor]) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
        """RUN/decoder, for `load_decoder`."""
        values = {"kind": MARK, "source": self.settings.source, **self.decoder.shape, "mark": state["mark"].tolist()}
        weights = {n.removeprefix("decoder."): t for n, t in state.items() if n.startswith("decoder.")}
        return {FOLDER: (values, weights)}


@torch.no_grad()
def read_source(backbone: Backbone, pixels: Tensor, source: Source) -> Tensor:
    """The decoder's input for each patch, [B, P, D]: its latent, or the hidden state that predicts it. Sets the
    backbone to eval mode, because nothing random (positions, dropout) may change the input.
    """
    backbone.eval()
    latents = backbone.embed({"pixel_values": pixels})
    if source == "latents":
        return latents.z[:, 1:]
    return backbone.encode(latents, attention="causal").last[:, :-1]


@torch.no_grad()
def decoding_metrics(found: Tensor, target: Tensor, mask: Tensor, num_channels: int) -> dict[str, Tensor]:
    """psnr: of the decoded patches, in dB, for pixels in [-1, 1]; psnr_flat: that of each patch's mean colour."""
    pixels = target[mask].unflatten(-1, (num_channels, -1))  # [N, C, h * w]
    return {"psnr": _psnr(found[mask] - target[mask]), "psnr_flat": _psnr(pixels - pixels.mean(-1, keepdim=True))}


def _psnr(error: Tensor) -> Tensor:
    return 10 * torch.log10(4 / error.square().mean().clamp(min=1e-10))


def model_mark(backbone: Backbone, source: Source) -> Tensor:
    """A fingerprint of a model, [8]: some latents of a fixed pattern, of root mean square near 1."""
    config, training = backbone.config, backbone.training
    height, width = (2 * side for side in config.patch_shape)
    weight = next(iter(backbone.parameters()))
    places = torch.arange(config.num_channels * height * width, dtype=torch.float32)
    pixels = (places * 0.37).sin().view(1, config.num_channels, height, width).to(weight.device, weight.dtype)
    values = F.normalize(read_source(backbone, pixels, source)[0].float(), dim=-1).flatten()
    backbone.train(training)
    return (values[:: len(values) // NUM_MARKS][:NUM_MARKS] * config.hidden_size**0.5).cpu()


class LoadedDecoder:
    """A finished decoder. decoder: `LatentDecoder`, eval mode; source: what it decodes; name: of its run."""

    def __init__(self, decoder: LatentDecoder, source: Source, mark: Tensor, name: str):
        self.decoder, self.source, self.mark, self.name = decoder, source, mark, name

    def check(self, backbone: Backbone) -> str:
        """Empty if it was trained on this model; a sentence if on other weights of the same shape.

        Raises ConfigError if it was trained for another shape.
        """
        config, shape = backbone.config, self.decoder.shape
        ours = {"hidden_size": config.hidden_size, "patch_shape": list(config.patch_shape),
                "num_channels": config.num_channels}  # fmt: skip
        for field, value in ours.items():
            if shape[field] != value:
                raise ConfigError(
                    f"the decoder in {self.name} was trained for {field} {shape[field]}; the model has {value}"
                )
        difference = (self.mark - model_mark(backbone, self.source)).abs().max().item()
        return "" if difference < 0.05 else f"{self.name} was trained on different weights than these"


@dataclass
class DecoderFile:
    """Content of RUN/decoder/config.json."""

    source: Source
    hidden_size: Size
    patch_shape: tuple[Size, Size]
    num_channels: Size
    width: Size
    num_layers: Annotated[int, Field(gt=0, le=MAX_LAYERS)]
    num_heads: Size
    mark: list[Number]


def load_decoder(path: str | Path) -> LoadedDecoder:
    """The decoder of a finished run of the recipe `latent_decoder`.

    Args:
        path: the run, or its folder RUN/decoder.

    Returns:
        The decoder, in eval mode; `decoder.image(latents, grid)` gives pixels.

    Raises:
        ConfigError: there is no decoder, or its files are damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"no such decoder: {path}")
    folder = path / FOLDER if (path / FOLDER / "config.json").is_file() else path
    file, weights = folder / "config.json", folder / "model.safetensors"
    if not (file.is_file() and weights.is_file()):
        raise ConfigError(f"{path} contains no finished decoder: it has no {FOLDER}/config.json and weights")
    values = read_json(file)
    if not isinstance(values, dict) or values.get("kind") != MARK:
        raise ConfigError(f"{path} contains no decoder: train one with the recipe latent_decoder")
    saved = checked(DecoderFile, values, file)
    with building(f"the decoder in {folder}"):
        decoder = LatentDecoder(
            saved.hidden_size, saved.patch_shape, saved.num_channels, saved.width, saved.num_layers, saved.num_heads
        )
    try:
        decoder.load_state_dict(load_file(weights))
    except Exception as err:  # whatever a broken file raises
        raise ConfigError(f"cannot load the decoder in {folder}: {first_line(err)}") from None
    name = path.parent.name if path.name == FOLDER else path.name
    return LoadedDecoder(decoder.eval(), saved.source, torch.tensor(saved.mark), name or str(path))
