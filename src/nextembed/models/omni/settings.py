"""The model part of an Omni run: a new model with its modalities, one that starts from a NEPA, or a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from transformers import AutoTokenizer

from ...core.config import MODELS
from ...core.sizes import MAX_LAYERS, MAX_LENGTH, MAX_WIDTH
from ...core.types import Batch, Draw, Loading
from ...errors import ConfigError
from ...modalities import MODALITIES
from ..nepa.loading import read_any_config, read_config
from ..nepa.modeling_nepa import ViTNepaForPreTraining
from ..parts import POSITION, ModelPart, load_part
from .configuration_omni import OmniConfig
from .modeling_omni import OmniForPreTraining
from .processing_omni import OmniProcessor

NUM_MEASURED = 64  # packed rows
BUNDLED_TOKENIZER = Path(__file__).parents[2] / "data" / "sample" / "tokenizer"
NEPA_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "use_gated_mlp", "hidden_act",
    "qkv_bias", "qk_norm", "qk_norm_bias", "qk_norm_affine", "layer_norm_eps", "rope_theta", "layerscale_value",
)  # fmt: skip


@MODELS.register("omni")
class OmniParts(ModelPart):
    """An Omni model: one transformer, and the modalities at its boundary.

    Attributes:
        pretrained: an Omni folder or hub id to start from, with its processor; then only `max_length` and `orders` have
            an effect.
        modalities: settings by name; a name that is a kind needs no more than {}. `kind: my_file.py:MyModality` takes
            your own. Those of the package: text, image, audio, video, series.
        tokenizer: folder or hub id, for text that is not read as bytes; "bundled": a small English one that comes with
            the package (its size is then filled in).
        nepa: a NEPA folder whose transformer, begin latent and patches it starts from; its sizes win over the fields
            here, and the image modality has to fit it.
        orders: order in which the latents of a modality are read: {"image": "hilbert"}; see `nn.orders`.
        tell_next: conditions the model on the position of the next latent; null: only where some order is neither
            raster nor time.
        max_length: positions of a packed row.
        hidden_size: width of the latents and of every layer.
        num_hidden_layers: layers of the transformer.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the MLPs; null: 8/3 * hidden_size, cut to a multiple of 8.
        layerscale_value: factor on what each layer adds, at the start (learned); null leaves it out.
        drop_path_prob: stochastic depth of the last layer, rising linearly from 0 at the first.
        rope_split: rotary frequencies for time, height and width, which sum to half a head's width; null gives a half
            to time and a quarter to each other. [0, n, n] is NEPA's.
        density: "none" predicts a latent; "von_mises_fisher" a direction and a concentration; "mixture" num_components
            of them with weights; "flow" and "energy" a network that draws it (`nn.sampled`).
        num_components: directions of a mixture.
        max_cosine: largest mean cosine that a component can expect.
    """

    task: ClassVar[str] = "multimodal"

    nepa: str | None = None
    modalities: dict[str, Any] = Field(default_factory=lambda: {"text": {}, "image": {}})
    tokenizer: str | None = None
    orders: dict[str, str] = {}
    tell_next: bool | None = None
    max_length: int = Field(512, ge=4, le=MAX_LENGTH)
    hidden_size: int = Field(768, gt=0, le=MAX_WIDTH)
    num_hidden_layers: int = Field(12, gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(12, gt=0, le=MAX_WIDTH)
    intermediate_size: int | None = Field(None, gt=0, le=4 * MAX_WIDTH)
    layerscale_value: float | None = Field(1e-5, ge=0, le=100)
    drop_path_prob: float = Field(0.0, ge=0, le=0.99)
    rope_split: Annotated[list[int], Field(min_length=3, max_length=3)] | None = None
    density: Literal["none", "von_mises_fisher", "mixture", "flow", "energy"] = "none"
    num_components: int = Field(8, ge=2, le=4096)
    max_cosine: float = Field(0.95, gt=0, lt=1)

    @field_validator("modalities", mode="after")
    @classmethod
    def _known(cls, given: dict[str, Any]) -> dict[str, Any]:
        """With kinds that are also found from another folder."""
        if not given:
            raise ValueError("a model needs one modality at least")
        found = {}
        for name, own in given.items():
            found[name] = MODALITIES.settle(name, own)
            kind = own if isinstance(own, str) else (own or {}).get("kind", name)
            if ".py:" in kind:
                file, _, cls_name = kind.rpartition(":")
                found[name]["kind"] = f"{Path(file).expanduser().resolve()}:{cls_name}"
        return found

    def build(self, class_names: Sequence[str] = ()) -> OmniForPreTraining:
        """The model, in float32.

        Args:
            class_names: not used.

        Returns:
            The model.

        Raises:
            ConfigError: One line, for what cannot be loaded or does not fit.
        """
        if self.pretrained is not None:
            return load_part(OmniForPreTraining, self.pretrained, "pretrained", dtype=torch.float32)
        sizes: dict[str, Any] = self.model_dump(include={
            "hidden_size", "num_hidden_layers", "num_attention_heads", "layerscale_value", "drop_path_prob",
            "rope_split", "density", "num_components", "max_cosine",
        })  # fmt: skip
        sizes["intermediate_size"] = self.intermediate_size or self.hidden_size * 8 // 3 // 8 * 8
        if self.nepa is not None:
            theirs = read_config(self.nepa)
            sizes |= {name: value for name, value in theirs.to_dict().items() if name in NEPA_SIZES}
        try:
            config = OmniConfig(modalities=self.boundary(), tell_next=self.tells(), **sizes)
        except ValueError as err:
            raise ConfigError(f"model: {err}") from None
        model = OmniForPreTraining(config)
        if self.nepa is not None:
            start_from_nepa(model, load_part(ViTNepaForPreTraining, self.nepa, "nepa", dtype=torch.float32), self.nepa)
        return model

    def tells(self) -> bool:
        """Whether the model is conditioned on the position of the next latent."""
        if self.tell_next is not None:
            return self.tell_next
        return any(order not in ("raster", "time") for order in self.orders.values())

    def boundary(self) -> dict[str, Any]:
        """Settings of the modalities, with the tokenizer's size where text is not bytes."""
        found = {name: MODALITIES.settle(name, own) for name, own in self.modalities.items()}
        for own in found.values():
            if own["kind"] == "text" and self.tokenizer is not None:
                own.setdefault("vocabulary", len(self.tokens()))
        return found

    def tokens(self) -> Any:
        """The tokenizer; None where text is bytes. Raises ConfigError."""
        if self.tokenizer is None:
            return None
        path = str(BUNDLED_TOKENIZER) if self.tokenizer == "bundled" else self.tokenizer
        return load_part(AutoTokenizer, path, "tokenizer")

    def processor(self) -> OmniProcessor:
        """What makes batches for this model; saved with its checkpoints."""
        if self.pretrained is not None:
            found = load_part(OmniProcessor, self.pretrained, "pretrained")
            found.orders |= self.orders
            return found
        try:
            return OmniProcessor(self.boundary(), self.orders, self.tells(), self.tokens())
        except ValueError as err:
            raise ConfigError(f"model: {err}") from None

    def prepare(self, backbone: Any, data: Any) -> None:
        """Measures typical values of each modality, for the inverse of its embedding (`nn.linear_inverse`), before the
        first step of a new run.

        Args:
            backbone: the model.
            data: the data part of the run.
        """
        statistics = backbone.model.values
        if not len(statistics) or self.pretrained is not None:
            return
        loader = data.model_copy(update={"num_workers": 0}).train_loader(
            Loading(1, pin_memory=False), **self.loader_arguments(backbone)
        )
        rows = [batch for _, batch in zip(range(NUM_MEASURED), loader)]
        for name, own in statistics.items():
            own.measure(torch.cat([row[f"values.{name}"] for row in rows]))

    def example_batch(self, backbone: Any, size: int, draw: Draw) -> Batch:
        """A batch of the right shapes without data: full rows of documents with each continuous modality in turn, as
        many latents of each as of text.

        Args:
            backbone: the model.
            size: rows.
            draw: the objective's `draw`.

        Returns:
            The batch, on the CPU.
        """
        return full_rows(backbone, self.max_length, size, draw)

    def usage(self, folder: str) -> str:
        """A command that goes from one modality to another.

        Args:
            folder: of the model.

        Returns:
            The command.
        """
        kinds = {name: str(own.get("kind", name)) for name, own in self._known_modalities().items()}
        target = "text" if "text" in kinds else next(iter(kinds))
        given = next((name for name in kinds if kinds[name] == "image" and name != target), None)
        given = given or next((name for name in kinds if name != target), target)
        file = {
            "image": "--image PICTURE.png",
            "video": "--video FILM.mp4",
            "audio": "--audio SOUND.wav",
            "text": '--text "a red apple"',
        }.get(kinds[given], "--series SERIES.json" if given == "series" else f"--piece {given}=FILE")
        return f"nextembed generate {folder} {file} --target {target}"

    def _known_modalities(self) -> Mapping[str, Mapping[str, object]]:
        """Those of the pretrained model, if there is one and it is still where it was."""
        if self.pretrained is None:
            return self.modalities
        try:
            config = read_any_config(self.pretrained)
        except ConfigError:
            return self.modalities
        return (config.modalities if isinstance(config, OmniConfig) else None) or self.modalities

    def loader_arguments(self, backbone: Any) -> dict[str, Any]:
        """Arguments of the data's `train_loader` that depend on this model.

        Args:
            backbone: the model.

        Returns:
            `encode` and `max_length`.
        """
        processor = self.processor()
        processor.check(backbone.config)
        return {"encode": processor.encode_document, "max_length": self.max_length}


def full_rows(backbone: OmniForPreTraining, length: int, size: int, draw: Draw) -> Batch:
    """See `OmniParts.example_batch`."""
    modalities = dict(backbone.model.modalities)
    names = list(modalities)
    kinds = 2 + torch.arange(length).remainder(len(names))
    kinds[0] = 1
    row: dict[str, torch.Tensor] = {
        "kinds": kinds,
        "input_ids": torch.zeros(length, dtype=torch.int64),
        "coordinates": torch.zeros(length, 3),
        "latent_mask": torch.arange(length) > 0,
        "document_ids": torch.ones(length, dtype=torch.int64),
        "position_ids": torch.arange(length),
        "position": torch.zeros(POSITION, dtype=torch.int64),
    }
    row |= draw(row, torch.Generator().manual_seed(0))
    batch = {name: value[None].expand(size, *value.shape) for name, value in row.items()}
    for number, (name, modality) in enumerate(modalities.items()):
        if modality.value_size is not None:
            count = size * int((kinds == 2 + number).sum())
            batch[f"values.{name}"] = torch.zeros(1, modality.value_size).expand(count, -1)
    if backbone.config.tell_next:
        batch["next_coordinates"] = torch.zeros(1, 1, 3).expand(size, length, 3)
    return cast(Batch, batch)


@torch.no_grad()
def start_from_nepa(model: OmniForPreTraining, nepa: ViTNepaForPreTraining, name: str) -> None:
    """Puts a NEPA's weights into an Omni of the same sizes: the layers, the patch embedding of its first image
    modality, and the begin token as that modality's begin latent. Raises ConfigError for other patches."""
    theirs = nepa.vit_nepa
    own = model.model
    own.encoder.load_state_dict(theirs.encoder.state_dict())
    own.layernorm.load_state_dict(theirs.layernorm.state_dict())
    images = [n for n, part in own.modalities.items() if (own.config.modalities or {})[n].get("kind", n) == "image"]
    if not images:
        raise ConfigError(f"model.nepa: '{name}' reads images, and the model has no image modality")
    reader: Any = own.modality(images[0])
    patches = reader.projection
    kernel = theirs.embeddings.patch_embeddings.projection.weight.flatten(1)
    if kernel.shape != patches.weight.shape:
        raise ConfigError(f"model.nepa: patches of '{name}' have {kernel.shape[1]} values, those of the image modality "
                          f"{patches.weight.shape[1]}: set its patch_size and num_channels")  # fmt: skip
    patches.weight.copy_(kernel * reader.std)  # NEPA reads pixels in [-1, 1], this modality (pixels - mean) / std
    patches.bias.copy_(theirs.embeddings.patch_embeddings.projection.bias + kernel.sum(1) * reader.mean)
    own.begin.weight[own.config.names.index(images[0])] = theirs.embeddings.cls_token[0, 0]
