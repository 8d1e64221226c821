"""The model part of an Emu run: assembled from existing parts, or a checkpoint to continue from."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from ...core.config import MODELS
from ...core.files import first_line
from ...core.pretrained import load_pretrained
from ...core.quiet import import_bitsandbytes
from ...core.sizes import MAX_LENGTH
from ...core.types import IGNORE_LABEL, Batch, Draw, Loading
from ...errors import ConfigError, MissingExtra
from ..gguf import gguf_file, gguf_model, gguf_tokenizer
from ..parts import POSITION, ModelPart, load_part
from .configuration_emu import Connector, EmuConfig, as_config
from .connectors import standardise
from .modeling_emu import EmuForConditionalGeneration
from .processing_emu import ASSISTANT, END, IMAGE, START, USER, EmuProcessor, add_emu_tokens
from .visual import build_visual
from .vocabulary import grow_vocabulary

EXAMPLE_TEXT = 30  # tokens per image, as in a short caption
NUM_MEASURED = 256  # images for `latent_std`
BUNDLED_TOKENIZER = Path(__file__).parents[2] / "data" / "sample" / "tokenizer"


@MODELS.register("emu")
class EmuParts(ModelPart):
    """An Emu model: a visual encoder, a connector, a language model, two heads.

    Attributes:
        pretrained: an Emu folder or hub id to continue from, with its processor; then only `max_length` and
            `image_start_is_target` have an effect, and a `vision` or `language` given with it replaces that part's
            weights.
        vision: HF folder or hub id of a vision model: a NEPA of ours, SigLIP, DINOv3, CLIP, ...; of an Emu, its
            encoder.
        language: HF folder or hub id of a causal language model, or its GGUF file.
        vision_config: with a model_type, a new vision model in place of a pretrained one; else changes to its
            configuration, e.g. {is_causal: false}.
        language_config: with a model_type, a new language model in place of a pretrained one; else changes to its
            configuration.
        tokenizer: folder or hub id; null: the language model's; "bundled": a small English one that comes with the
            package. Emu's special tokens are added; new rows of the language model are the mean of its old ones.
        connector: from patches to image latents: "causal_former" (Emu), "pooled_grid" (Emu2) or "identity" (every
            patch).
        num_image_latents: latents of an image.
        causal_former: changes to the T5-base configuration that "causal_former" is built from.
        vision_layer: hidden state of the vision model that is read; null: the last one.
        instruct: adds the tokens `[USER]` and `[ASSISTANT]`.
        image_start_is_target: the text head learns when an image begins.
        latent_std: scales the connector at the start so that latents have this standard deviation over some training
            images; null leaves it as it is. Runs of minutes need it: nearly identical latents otherwise stay so.
        max_length: positions of a packed row.
        quantize: loads the frozen language model in 4 or 8 bits (bitsandbytes; needs train.lora).
    """

    task: ClassVar[str] = "multimodal"

    vision: str | None = None
    vision_config: dict[str, Any] = Field(default_factory=dict)
    language: str | None = None
    language_config: dict[str, Any] = Field(default_factory=dict)
    tokenizer: str | None = None
    connector: Connector = "causal_former"
    num_image_latents: int = Field(32, ge=1, le=MAX_LENGTH)
    causal_former: dict[str, Any] = Field(default_factory=dict)
    vision_layer: int | None = None
    instruct: bool = False
    image_start_is_target: bool = False
    latent_std: float | None = Field(None, ge=1e-6, le=1e6)
    max_length: int = Field(2048, ge=8, le=MAX_LENGTH)
    quantize: Literal["4bit", "8bit"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "EmuParts":
        parts = (("vision", self.vision, self.vision_config), ("language", self.language, self.language_config))
        for part, name, config in parts:
            if self.pretrained is None and name is None and "model_type" not in config:
                raise ValueError(
                    f"name a {part} model, e.g. {part}=FOLDER, or a new one, {part}_config={{model_type: ..., ...}}"
                )
        return self

    def build(self, class_names: Sequence[str] = ()) -> EmuForConditionalGeneration:
        """The model, in float32.

        Args:
            class_names: not used.

        Returns:
            The model.

        Raises:
            ConfigError: One line, for a part that cannot be loaded or does not fit.
        """
        if self.pretrained is not None:
            model = load_part(EmuForConditionalGeneration, self.pretrained, "pretrained", dtype=torch.float32)
            for part, name in (("visual", self.vision), ("language_model", self.language)):
                if name is not None:
                    replace_part(model.model, part, name)
            return model
        tokenizer = self.tokens()
        visual, language = self._vision(), self._language()
        grow_vocabulary(language, len(tokenizer))
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (START, END, IMAGE, USER, ASSISTANT)}
        unknown = tokenizer.unk_token_id
        language.config.pad_token_id = tokenizer.pad_token_id
        try:
            config = EmuConfig(
                vision_config=visual.config,
                text_config=language.config,
                causal_former_config=self.causal_former,
                connector=self.connector,
                num_image_latents=self.num_image_latents,
                vision_layer=self.vision_layer,
                image_token_id=ids[IMAGE],
                image_start_token_id=ids[START],
                image_end_token_id=ids[END],
                user_token_id=None if ids[USER] == unknown else ids[USER],
                assistant_token_id=None if ids[ASSISTANT] == unknown else ids[ASSISTANT],
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            return EmuForConditionalGeneration(config, visual, language)
        except ValueError as err:
            raise ConfigError(f"model: {err}") from None

    def processor(self) -> EmuProcessor:
        """What makes batches for this model; saved with its checkpoints."""
        if self.pretrained is not None:
            found = load_part(EmuProcessor, self.pretrained, "pretrained")
            found.image_start_is_target = self.image_start_is_target
            return found
        return EmuProcessor(self.image_processor(), self.tokens(), self.num_image_latents, self.image_start_is_target)

    def tokens(self) -> Any:
        """The tokenizer, with Emu's tokens.

        Raises:
            ConfigError: Where there is none.
        """
        name = self.tokenizer or self.language
        if name is None:
            raise ConfigError("model.tokenizer: a new language model needs one; 'bundled' is a small English one")
        path = str(BUNDLED_TOKENIZER) if name == "bundled" else name
        file = gguf_file(path)
        tokenizer = gguf_tokenizer(file) if file else load_part(AutoTokenizer, path, "tokenizer")
        add_emu_tokens(tokenizer, self.instruct)
        return tokenizer

    def image_processor(self) -> Any:
        """Resizes to the encoder's size without keeping the aspect ratio; mean and standard deviation are the vision
        model's, else CLIP's."""
        config = self._vision_config()
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        fields: dict[str, Any] = {"size": {"height": size, "width": size}, "resample": 3}
        if self.vision is not None:
            with contextlib.suppress(ConfigError):  # a model without one
                own = load_part(AutoImageProcessor, self.vision, "vision")
                fields |= {"image_mean": own.image_mean, "image_std": own.image_std}
                return ViTImageProcessorPil(**fields)
        if config.model_type == "vit_nepa":
            return ViTImageProcessorPil(**fields, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        return CLIPImageProcessorPil(**fields, do_center_crop=False)

    def prepare(self, backbone: Any, data: Any) -> None:
        """Measures `latent_std` on training images, before the first step of a new run.

        Args:
            backbone: the model.
            data: the data part of the run.
        """
        if self.latent_std is None:
            return
        # From the shuffled training data: stored rows may be sorted by kind.
        loader = data.model_copy(update={"num_workers": 0}).train_loader(
            Loading(1, pin_memory=False), **self.loader_arguments(backbone)
        )
        pixels: list[torch.Tensor] = []
        for _, batch in zip(range(NUM_MEASURED), loader):
            pixels.append(batch["pixel_values"])
            if sum(map(len, pixels)) >= NUM_MEASURED:
                break
        if not len(measured := torch.cat(pixels)):
            raise ConfigError("model.latent_std: the data has no images to measure")
        was_training = backbone.training
        backbone.eval()
        with torch.no_grad():
            features = torch.cat([backbone.model.visual_features(part) for part in measured.split(64)])
        standardise(backbone.model.connector, features, self.latent_std)
        backbone.train(was_training)

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

    def example_batch(self, backbone: Any, size: int, draw: Draw) -> Batch:
        """A batch of the right shapes without data: full rows of documents, each an image and about EXAMPLE_TEXT
        tokens.

        Args:
            backbone: the model.
            size: rows.
            draw: the objective's `draw`.

        Returns:
            The batch, on the CPU.
        """
        return full_rows(backbone.config, self.max_length, size, draw)

    def usage(self, folder: str) -> str:
        return f"nextembed generate {folder} PICTURE.png    (or nextembed chat {folder})"

    def _vision_config(self) -> PreTrainedConfig:
        if self.vision is None:
            try:
                return as_config(self.vision_config, None)
            except (ValueError, TypeError) as err:
                raise ConfigError(f"model.vision_config: {str(err).splitlines()[0]}") from None
        config = load_part(AutoConfig, self.vision, "vision")
        config = getattr(config, "vision_config", None) or config  # of a CLIP or SigLIP with text
        for name, value in self.vision_config.items():
            if not hasattr(config, name):
                raise ConfigError(f"model.vision_config: {config.model_type} has no setting '{name}'")
            setattr(config, name, value)
        return config

    def _vision(self) -> PreTrainedModel:
        config = self._vision_config()
        if self.vision is None:
            return build_visual(config)
        if isinstance(load_part(AutoConfig, self.vision, "vision"), EmuConfig):
            emu = load_part(EmuForConditionalGeneration, self.vision, "vision", dtype=torch.float32)
            return emu.model.visual
        return load_part(AutoModel, self.vision, "vision", config=config, dtype=torch.float32)

    def _language(self) -> PreTrainedModel:
        if self.language is None:
            try:
                return AutoModelForCausalLM.from_config(as_config(self.language_config, None), trust_remote_code=False)
            except (ValueError, TypeError) as err:
                raise ConfigError(f"model.language_config: {str(err).splitlines()[0]}") from None
        if file := gguf_file(self.language):
            if self.quantize is not None:
                raise ConfigError("model.quantize: a GGUF file is read as float32; name a folder of safetensors")
            return gguf_model(file)
        options: dict[str, Any] = {"dtype": torch.float32}
        if self.quantize is not None:
            options = {"quantization_config": quantization(self.quantize)}
        return load_part(AutoModelForCausalLM, self.language, "language", **options)


def full_rows(numbers: EmuConfig, length: int, size: int, draw: Draw) -> Batch:
    """See `EmuParts.example_batch`. Raises ConfigError for rows that are too short for an image."""
    document = numbers.num_image_latents + 2 + EXAMPLE_TEXT
    images = max(1, length // document)
    block = [numbers.image_start_token_id, *[numbers.image_token_id] * numbers.num_image_latents,
             numbers.image_end_token_id]  # fmt: skip
    if len(block) > length:
        raise ConfigError(f"model.max_length {length}: one image takes {len(block)} positions")
    documents = torch.arange(length).div(document, rounding_mode="floor").clamp(max=images - 1)
    places = torch.arange(length) - documents * document
    ids = torch.zeros(length, dtype=torch.int64)
    for at, token in enumerate(block):
        ids[places == at] = token
    ids[places >= len(block)] = next(i for i in range(3, 100) if i not in block)
    is_text = places >= len(block)
    row: dict[str, torch.Tensor] = {
        "input_ids": ids,
        "labels": torch.where(is_text, ids, IGNORE_LABEL),
        "regression_mask": ~is_text & (places > 0),
        "document_ids": documents + 1,
        "position_ids": places,
        "position": torch.zeros(POSITION, dtype=torch.int64),
    }
    row |= draw(row, torch.Generator().manual_seed(0))
    vision = numbers.vision_config
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    batch: Any = {name: value[None].expand(size, -1) for name, value in row.items()}
    batch["pixel_values"] = torch.zeros(1, getattr(vision, "num_channels", 3), side, side).expand(
        size * images, -1, -1, -1
    )
    return cast(Batch, batch)


def quantization(bits: str) -> object:
    """Settings of bitsandbytes. Raises MissingExtra where it is not installed."""
    import_bitsandbytes()
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError:
        raise MissingExtra("bitsandbytes", "quantize") from None
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")


def replace_part(model: PreTrainedModel, part: str, name: str) -> None:
    """Puts the weights of another checkpoint into a part of an EmuModel. Raises ConfigError if they do not fit."""
    own = model.get_submodule(part)
    what = f"model: the weights of '{name}' do not fit the {part}"
    loaded = load_pretrained(type(own), Path(name).expanduser(), what, config=own.config, dtype=torch.float32)
    try:
        own.load_state_dict(loaded.state_dict())
    except RuntimeError as err:
        raise ConfigError(f"{what}: {first_line(err)}") from None
