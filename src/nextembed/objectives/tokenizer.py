"""A tokenizer of images, trained on the user's own: what `llamagen` and `var` predict.

The run's model only gives the sizes of images and patches and the channels; it is neither read nor trained. The
tokenizer is saved in RUN/tokenizer. Shapes: B images, L codes of an image, V numbers a code, K codes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..core import distributed
from ..core.config import Config
from ..core.files import first_line
from ..core.objective import OBJECTIVES, Folder, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.optim import OptimConfig
from ..core.saved import checked, read_json
from ..core.sizes import MAX_SIDE, MAX_WIDTH, building
from ..core.types import Backbone, Batch, Metrics, PatchConfig
from ..errors import ConfigError, shortened
from ..nn.quantize import first_codes
from ..nn.readout import to_patches
from ..nn.tokenizer import ImageTokenizer, TokenizerShape
from .pixels import patch_shape_of

FOLDER = "tokenizer"  # in the run folder
FORGOTTEN = 1e-3  # running number of vectors below which a code has no mean
COLLAPSED = 0.02  # share of the codes: with fewer in effect a codebook has collapsed


@OBJECTIVES.register("tokenizer")
class TokenizerSettings(ObjectiveSettings):
    """Images as codes and back: a VQ autoencoder, of one map of codes or of maps from coarse to fine.

        q, code_loss = quantise(encoder(image))                 # see `nn.tokenizer.MapQuantizer`
        loss = mean over pixels of |decoder(q) - image|^2 + code_loss

    Attributes:
        num_codes: number of codes of the codebook (16,384 in LlamaGen, 4,096 in VAR).
        code_width: width of a code (8 in LlamaGen, 32 in VAR).
        scales: sides of the maps, coarse to fine, the last one that of the model's patches; null: one map, with
            normalised codes.
        width: width of the convolution networks.
        num_blocks: residual blocks at the size of the patches.
        code_decay: codes are running means of the vectors assigned to them, with this decay per step: they follow the
            encoder as fast as it moves; null: codes are trained by gradient, as in both papers.
        revive_steps: interval, in steps, at which unused codes are replaced by vectors of that step's images.

    Source:
        LlamaGen (arXiv 2406.06525), section 3.1, and VAR (arXiv 2404.02905), Algorithms 1 and 2, with the
        running means of VQ-VAE (arXiv 1711.00937), appendix A.1. Ours has a smaller net, no perceptual and no
        adversarial loss, and codes that start from vectors of the first step.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(
        learning_rate=1e-3, weight_decay=0.0, betas=(0.9, 0.95), warmup_rate=0.02
    )
    trains_backbone: ClassVar[bool] = False

    num_codes: int = Field(256, ge=2, le=65536)
    code_width: int = Field(8, gt=0, le=MAX_WIDTH)
    scales: list[int] | None = Field(None, min_length=1, max_length=64)
    width: int = Field(64, gt=0, le=MAX_WIDTH)
    num_blocks: int = Field(2, ge=0, le=64)
    code_decay: float | None = Field(0.9, ge=0, lt=1)
    revive_steps: int = Field(10, ge=1, le=10**9)

    @model_validator(mode="after")
    def _rising(self) -> "TokenizerSettings":
        scales = self.scales or [1]
        if sorted(set(scales)) != scales or not 0 < scales[0] <= scales[-1] <= MAX_SIDE:
            raise ValueError(f"scales {scales} should rise from 1 or more")
        return self

    def build(self, backbone: Backbone) -> "Tokenizing":
        """Raises ConfigError for a model without patches, or scales that do not end at their grid."""
        patch_shape_of(backbone, "tokenizer")
        return Tokenizing(self, ImageTokenizer(self.shape_for(backbone.config)))

    def shape_for(self, config: PatchConfig) -> TokenizerShape:
        """Sizes for images and patches of a model. Raises ConfigError for scales that do not end at their grid."""
        shape = TokenizerShape(
            image_shape=config.image_shape, patch_shape=config.patch_shape, num_channels=config.num_channels,
            num_codes=self.num_codes, code_width=self.code_width, width=self.width, num_blocks=self.num_blocks,
            scales=self.scales or [],
        )  # fmt: skip
        rows, columns = shape.grid
        if self.scales is not None and (self.scales[-1] != rows or rows != columns):
            raise ConfigError(f"objective.scales: the last should be the model's grid of patches, {rows} x {columns}"
                              f"{', which has to be square' if rows != columns else ''}")  # fmt: skip
        return shape

    def warnings(self, history: History) -> list[str]:
        found = [line for line in history if "code_perplexity" in line]
        if len(found) > 5 and all(line["code_perplexity"] < self.fewest for line in found[-5:]):
            return [f"collapse: only {found[-1]['code_perplexity']:.1f} of {self.num_codes} codes are in use; "
                    "lower optim.learning_rate or objective.revive_steps"]  # fmt: skip
        return []

    def usage(self, folder: str) -> str:
        recipe = "llamagen_demo" if self.scales is None else "var_demo"
        return f"nextembed train {recipe} objective.tokenizer={folder}"

    @property
    def fewest(self) -> float:
        """Number of codes in effect below which a codebook has collapsed."""
        return max(2.0, COLLAPSED * self.num_codes)

    def verdict(self, history: History) -> Verdict:
        """By the number of codes in use, and the error compared with the mean colour of each patch."""
        found = [line for line in history if "code_perplexity" in line]
        if not found:
            return Verdict("undecided", "No diagnostics were logged.")
        last = found[-1]
        used = f"{last['code_perplexity']:.0f} of {self.num_codes} codes are in use, by their entropy"
        if last["code_perplexity"] < self.fewest:
            return Verdict("collapsed", f"The codebook collapsed: only {used}.")
        said = f"images are reconstructed with a PSNR of {last['psnr']:.1f} dB"
        flat = f"the mean colour of each patch would reach {last['psnr_flat']:.1f} dB"
        if last["psnr"] <= last["psnr_flat"]:
            return Verdict("undecided", f"No better than flat patches yet: {said}, where {flat}; {used}. Train longer.")
        return Verdict("learning", f"{said[0].upper()}{said[1:]}; {flat}. {used[0].upper()}{used[1:]}.")


class Tokenizing(Objective):
    """The objective of `TokenizerSettings`.

    metrics: psnr, psnr_flat in dB, for pixels in [-1, 1]; code_perplexity: exp of the entropy of the batch's codes;
    code_loss; codes_revived: number in the last revival.
    """

    settings: TokenizerSettings
    usage: Tensor
    revived: Tensor
    started: Tensor
    near: Tensor
    sums: Tensor

    def __init__(self, settings: TokenizerSettings, tokenizer: ImageTokenizer):
        super().__init__(settings)
        self.tokenizer = tokenizer
        self.register_buffer(
            "usage", torch.zeros(settings.num_codes, dtype=torch.int64)
        )  # steps since codes were revived
        self.register_buffer("revived", torch.tensor(0))
        self.register_buffer("started", torch.tensor(False))
        codes = tokenizer.quantizer.codes
        if settings.code_decay is not None:
            codes.requires_grad_(False)  # `after_step` moves them
        self.register_buffer("near", torch.ones(len(codes)))  # running number of vectors per step, for each code
        self.register_buffer("sums", torch.zeros_like(codes))  # and of their sum
        self.seen: list[tuple[Tensor, Tensor]] = []  # ids and vectors of the step's micro batches

    def count_targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["pixel_values"]), device=batch["pixel_values"].device)

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        pixels = batch["pixel_values"].float()
        found = self.tokenizer.quantise(pixels)
        restored = self.tokenizer.pixels(found.features)
        error = (restored - pixels).square().flatten(1).mean(1)
        if self.training:
            self.seen.append((found.ids.flatten(), found.vectors.detach()))
        metrics = self.diagnosed(pixels, error.detach(), found.ids, found.loss.detach()) if self.diagnose else None
        count = self.count_targets(batch)
        return ObjectiveOutput(loss_sum=(error + found.loss).sum(), num_targets=count, metrics=metrics)

    @torch.no_grad()
    def diagnosed(self, pixels: Tensor, error: Tensor, ids: Tensor, code_loss: Tensor) -> Metrics:
        patches = to_patches(pixels, self.tokenizer.shape.patch_shape).unflatten(-1, (pixels.shape[1], -1))
        flat = (patches - patches.mean(-1, keepdim=True)).square().mean()
        counts = torch.zeros(self.settings.num_codes, dtype=torch.long, device=ids.device)
        shares = counts.scatter_add(0, ids.flatten(), torch.ones_like(ids.flatten())) / ids.numel()
        return {
            "psnr": _psnr(error.mean()),
            "psnr_flat": _psnr(flat),
            "code_loss": code_loss.mean(),
            "code_perplexity": torch.special.entr(shares).sum().exp(),
            "codes_revived": self.revived.float(),
        }

    @torch.no_grad()
    def prepare(self, backbone: Backbone, window: Sequence[Batch]) -> bool:
        """Starts the codes at vectors of the first step's images, far from each other, once.

        Raises ConfigError for more codes than these images have patches, and for sharded parameters.
        """
        codes = self.tokenizer.quantizer.codes
        if isinstance(codes, DTensor):
            raise ConfigError(
                "objective tokenizer updates its codes without gradients, which does not work with train.fsdp=true"
            )
        if not bool(self.started):
            codes.zero_()  # every map gets vectors that no other one has used
            found = torch.cat([self.tokenizer.quantise(batch["pixel_values"]).vectors for batch in window]).cpu()
            vectors = torch.cat(distributed.gather_objects(found))
            distinct, num = torch.unique(vectors, dim=0), self.settings.num_codes
            if len(distinct) < num:
                raise ConfigError(
                    f"objective.num_codes {num}: the patches of the first step's images give {len(distinct)} different "
                    "vectors; set fewer codes, or a larger train.batch_size"
                )
            codes.copy_(first_codes(distinct, num, torch.Generator().manual_seed(0)))
            self.sums.copy_(codes)
            self.started.fill_(True)
        return True

    @torch.no_grad()
    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Moves codes to the running means of their vectors, over all ranks, and from time to time unused codes to
        vectors of this step. The order of these vectors depends on the number of ranks, so different ones may be
        drawn."""
        num, codes = self.settings.num_codes, self.tokenizer.quantizer.codes
        counts, sums = torch.zeros(num, dtype=torch.float64), torch.zeros(codes.shape, dtype=torch.float64)
        for ids, vectors in self.seen:
            counts += ids.bincount(minlength=num).cpu()
            sums.index_add_(0, ids.cpu(), vectors.cpu().double())
        counts = distributed.sum_over_ranks(counts)
        self.usage += counts.to(self.usage)
        if self.settings.code_decay is not None:
            self._follow(counts.to(codes), distributed.sum_over_ranks(sums).to(codes), self.settings.code_decay)
        if step % self.settings.revive_steps == 0:
            own = torch.cat([vectors for _, vectors in self.seen]).cpu() if self.seen else torch.empty(0)
            vectors = torch.cat([part for part in distributed.gather_objects(own) if len(part)] or [own])
            dead = (self.usage == 0).nonzero()[:, 0][: len(vectors)]
            drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(step))[: len(dead)]
            codes[dead] = self.sums[dead] = vectors[drawn].to(codes)
            self.near[dead] = 1
            self.revived.fill_(len(dead))
            self.usage.zero_()
        self.seen.clear()

    def _follow(self, counts: Tensor, sums: Tensor, decay: float) -> None:
        """Updates the running means with a step's counts [K] and sums [K, V]; a code without recent vectors stays where
        it is."""
        self.near.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        known = self.near > FORGOTTEN
        self.tokenizer.quantizer.codes[known] = self.sums[known] / self.near[known, None]

    def folders(self, state: dict[str, Tensor]) -> dict[str, Folder]:
        """RUN/tokenizer, for `load_tokenizer`."""
        values: dict[str, Any] = {"kind": FOLDER, "shape": self.tokenizer.shape.model_dump(mode="json")}
        weights = {n.removeprefix("tokenizer."): t for n, t in state.items() if n.startswith("tokenizer.")}
        return {FOLDER: (values, weights)}


def _psnr(error: Tensor) -> Tensor:
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


class TokenizerFile(Config):
    """Content of RUN/tokenizer/config.json.

    Attributes:
        kind: marker of the format.
        shape: the sizes that it is built from.
    """

    kind: Literal["tokenizer"]
    shape: TokenizerShape


def load_tokenizer(path: str | Path) -> ImageTokenizer:
    """The tokenizer of a finished run, or of its folder RUN/tokenizer, frozen.

    Args:
        path: the folder.

    Returns:
        It, in eval mode, on the CPU.

    Raises:
        ConfigError: there is none, or its files are damaged.
    """
    place, name = Path(path).expanduser(), shortened(str(path))
    if not place.exists():
        raise ConfigError(f"objective.tokenizer: no such run or folder: {name}")
    folder = place / FOLDER if (place / FOLDER / "config.json").is_file() else place
    file, weights = folder / "config.json", folder / "model.safetensors"
    values = read_json(file) if file.is_file() and weights.is_file() else None
    if not isinstance(values, dict) or values.get("kind") != FOLDER:
        raise ConfigError(
            f"objective.tokenizer: {name} contains no finished tokenizer; train one with vq_demo or msvq_demo"
        )
    shape = checked(TokenizerFile, values, file).shape
    with building(f"the tokenizer in {name}"):
        tokenizer = ImageTokenizer(shape)
    try:
        tokenizer.load_state_dict(load_file(weights))
    except Exception as err:  # whatever a broken file raises
        raise ConfigError(f"cannot load the tokenizer in {name}: {first_line(err)}") from None
    return tokenizer.requires_grad_(False).eval()


def check_tokenizer(shape: TokenizerShape, backbone: Backbone, name: str) -> None:
    """Raises ConfigError for a tokenizer that was trained for images of another size."""
    config = backbone.config
    ours = {"num_channels": config.num_channels, "image_shape": config.image_shape, "patch_shape": config.patch_shape}
    said = {"num_channels": "channels", "image_shape": "pixels", "patch_shape": "pixels a patch"}
    values = shape.model_dump()
    for field, value in ours.items():
        own = values[field]
        if own != value:
            own, value = (" x ".join(map(str, one)) if isinstance(one, tuple) else one for one in (own, value))
            raise ConfigError(f"objective.tokenizer: {name} was trained on {own} {said[field]}, the model has {value}")
