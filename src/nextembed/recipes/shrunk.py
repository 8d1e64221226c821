"""`tiny`: any run reduced to two steps and two narrow layers, on data of the package."""

from ..core.config import Part, apply_overrides
from ..data.mixture import Mixture
from ..data.pairs import TextData
from ..data.segmentation import SegmentationData
from ..data.sources import ImageData
from ..models.emu import EmuParts
from ..models.nepa import NepaModel, NepaSegmenter
from ..models.nepa.settings import NepaClassifier
from ..models.omni import OmniParts
from ..objectives.latent_decoder import LatentDecoderSettings
from ..objectives.tokenized import TokenizedSettings
from ..objectives.tokenizer import TokenizerSettings
from ..objectives.tokens import TokenSettings
from ..objectives.visual_decoder import VisualDecoderSettings
from ..runs import RunConfig
from ..toys.candle import Candle
from ..toys.emoji_documents import EmojiDocuments
from ..toys.moving_stamps import MovingStamps
from ..toys.scenes import EmojiScenes

SIZES = "hidden_size: 32, num_attention_heads: 2, intermediate_size: 48"
VISION = f"{{model_type: vit_nepa, image_size: 24, patch_size: 8, num_hidden_layers: 2, {SIZES}}}"
LANGUAGE = f"{{model_type: llama, vocab_size: 4096, max_position_embeddings: 128, num_hidden_layers: 2, {SIZES}}}"
FORMER = "{d_model: 24, d_kv: 8, num_heads: 2, d_ff: 32, num_layers: 1}"
EMOJI_SCENES = "{kind: emoji_scenes, scene_size: 32, num_scenes: 32, num_validation: 8, num_test: 8, num_workers: 0}"
BUNDLED = (EmojiDocuments, Candle)


def tiny(config: RunConfig) -> RunConfig:
    """The same run, shrunk so that it takes seconds on any machine; `NAME_tiny` is this of the recipe NAME.

    The objective and the switches of the model stay. Models start anew with two layers of width 32 (four where a
    pyramid needs them), train for two steps, and read emoji where the data does not come with the package. Parts of
    your own (`my_file.py:MyData`) stay as they are.

    Args:
        config: Any run's settings.

    Returns:
        A new config named `NAME_tiny`, that needs no other run and no download.
    """
    changes = [f"name={config.name}_tiny", "after=[]", *_data(config), *_model(config), *_objective(config)]
    return apply_overrides(config, [*changes, *_length(config), *_probe()])


def _data(config: RunConfig) -> list[str]:
    data = config.data
    if isinstance(data, ImageData):
        labels = "labels_per_class: 4" if config.model.task == "classification" else "cache: 'off'"
        augment = "[9, 0.5]" if data.rand_augment else "null"
        return [f"data={{kind: images, source: emoji, num_workers: 0, {labels}}}",
                f"data.rand_augment={augment}", f"data.erase_rate={data.erase_rate}"]  # fmt: skip
    if isinstance(data, SegmentationData | EmojiScenes):
        return [f"data={EMOJI_SCENES}"]
    if isinstance(data, MovingStamps):
        return ["data.num_clips=32", "data.num_validation=16", "data.num_test=16"]
    if config.model.task != "multimodal":
        return []
    if isinstance(data, Mixture):
        sources = ", ".join(_documents(source) for source in data.sources)
        return [f"data={{kind: mixture, sources: [{sources}], num_workers: 0, pack_window: 32}}"]
    replaced = [] if _comes_along(data) else [f"data={_documents(data)}"]
    return [*replaced, "data.num_workers=0", "data.pack_window=32"]


def _comes_along(data: Part) -> bool:
    return isinstance(data, BUNDLED) or (isinstance(data, TextData) and data.source == "glosses")


def _documents(data: Part) -> str:
    return "{kind: text, source: glosses}" if isinstance(data, TextData) else "{kind: emoji_documents}"


def _model(config: RunConfig) -> list[str]:
    model = config.model
    if isinstance(model, NepaModel):
        if model.pretrained is not None:
            return [f"model={{kind: vit_nepa, image_size: 24, patch_size: 8, num_hidden_layers: 2, {SIZES}}}"]
        width = 32 if model.num_frames == 1 else 48  # positions of clips have three axes
        return [f"model.image_size={3 * model.patch_size}", "model.num_hidden_layers=2", f"model.hidden_size={width}",
                "model.num_attention_heads=2", "model.intermediate_size=48"]  # fmt: skip
    if isinstance(model, NepaClassifier):
        architecture = f"{{image_size: 24, patch_size: 8, num_hidden_layers: 2, {SIZES}}}"
        return ["model.pretrained=null", "model.image_size=null", f"model.architecture={architecture}"]
    if isinstance(model, NepaSegmenter):
        architecture = f"{{image_size: 32, patch_size: 8, num_hidden_layers: 4, {SIZES}}}"
        return ["model.pretrained=null", "model.image_size=null", "model.head_width=16",
                f"model.architecture={architecture}"]  # fmt: skip
    if isinstance(model, EmuParts):
        return [f"model={{kind: emu, vision_config: {VISION}, language_config: {LANGUAGE}, tokenizer: bundled, "
                f"num_image_latents: 4, max_length: 64, causal_former: {FORMER}}}"]  # fmt: skip
    if isinstance(model, OmniParts):
        return _omni(model, config.data)
    return []


def _omni(model: OmniParts, data: Part) -> list[str]:
    sizes = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2"]
    if model.pretrained is not None:
        sizes += ["model.pretrained=null", "model.tokenizer=bundled"]
    if not _comes_along(data):  # its replacement has pictures
        sizes.append("model.modalities.image={image_size: 32, patch_size: 8}")
    return sizes


def _objective(config: RunConfig) -> list[str]:
    if isinstance(config.objective, TokenSettings):
        return ["objective.num_codes=8"]
    if isinstance(config.objective, TokenizedSettings) and isinstance(config.model, NepaModel):
        shape = _tokenizer(config.objective, config.model)
        return ["objective.tokenizer=null", f"objective.tokenizer_shape={shape}"]
    if isinstance(config.objective, TokenizerSettings):
        scales = [] if config.objective.scales is None else ["objective.scales=[1, 3]"]
        return ["objective.num_codes=8", "objective.width=8", *scales]
    if isinstance(config.objective, LatentDecoderSettings):
        return ["objective.width=32", "objective.num_layers=1", "objective.num_heads=2"]
    if isinstance(config.objective, VisualDecoderSettings):
        return ["objective.decoder={kind: pixels, image_size: 16, channels: [16, 32], head_width: 8}"]
    return []


def _tokenizer(objective: TokenizedSettings, model: NepaModel) -> str:
    """Sizes of an untrained tokenizer, which needs no other run."""
    side, scales = 3 * model.patch_size, [1, 3] if objective.kind == "var" else []
    images = f"image_shape: [{side}, {side}], patch_shape: [{model.patch_size}, {model.patch_size}]"
    nets = f"num_channels: {model.num_channels}, num_codes: 8, code_width: 4, width: 8, num_blocks: 0"
    return f"{{{images}, {nets}, scales: {scales}}}"


def _length(config: RunConfig) -> list[str]:
    train = config.train
    documents = config.model.task == "multimodal"
    changes = [
        "optim.warmup_epochs=null",
        "optim.warmup_rate=null",
        "optim.warmup_steps=1",
        f"train.batch_size={2 if documents else 8}",
        "train.epochs=null",
        "train.max_steps=2",
        "train.log_steps=1",
        "train.save_steps=2",
        "train.fsdp=false",
    ]
    if train.micro_batch_size is not None:
        changes.append("train.micro_batch_size=1")
    if train.probe_steps is not None:
        changes.append(f"train.probe_steps={'null' if documents else 1}")
    return changes


def _probe() -> list[str]:
    return [
        "probe.layers=[-1]",
        "probe.poolings=[mean]",
        "probe.attentions=[causal]",
        "probe.num_train=64",
        "probe.num_validation=32",
        "probe.num_test=32",
    ]
