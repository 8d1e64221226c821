"""From prompt to picture: an Emu model predicts image latents, its visual decoder paints them."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...core.hub import unreachable
from ...core.pretrained import load_pair
from ...core.run_folder import find_saved
from ...errors import ConfigError
from ...nn.latent_flow import LatentSampling
from .modeling_emu import EmuForConditionalGeneration
from .processing_emu import EmuProcessor
from .visual_decoder import FOLDER, OnStep, VisualDecoder

Prompt = Any  # text, an image, a list of such, or a list of such lists


class EmuPipeline:
    """Paints what an Emu model expects after a prompt of text and images.

        pipeline = EmuPipeline.from_pretrained("runs/my_emu")
        pipeline(["a cat with a hat"])               # one prompt, a PIL image
        pipeline([cat, dog])                         # two images: a blend
        pipeline([[cat, "in winter"], ["a dog"]])    # a list of prompts, a list of images

    Args:
        model: the Emu model.
        processor: its processor.
        decoder: its visual decoder; `scheduler` can be replaced by any other of diffusers.

    Source:
        Emu (arXiv 2307.05222), sections 2.3 and 4.
    """

    def __init__(self, model: EmuForConditionalGeneration, processor: EmuProcessor, decoder: VisualDecoder):
        """Raises ConfigError if the latents of the model do not fit the decoder."""
        decoder.check_width(model.config.hidden_size)
        self.model, self.processor, self.decoder = model.eval(), processor, decoder.eval()

    @property
    def scheduler(self) -> Any:
        return self.decoder.scheduler

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        self.decoder.scheduler = value

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        visual_decoder: str | Path | VisualDecoder | None = None,
        dtype: torch.dtype | None = None,
        **parts: Any,
    ) -> "EmuPipeline":
        """The pipeline of a folder with an Emu model and `visual_decoder/` (or unet/, vae/, ... beside the model), of a
        run of `visual_decoder`, or of a hub id of such a folder.

        Args:
            path: a folder with an Emu model, a run of `visual_decoder`, or a hub id.
            visual_decoder: a decoder, or a folder with unet/, scheduler/ and what else it has.
            dtype: of model and decoder; None is float32.
            parts: folders (or loaded things) of unet, vae, scheduler, feature_extractor, safety_checker;
                safety_checker=False leaves it out.

        Returns:
            The pipeline, on the CPU.

        Raises:
            ConfigError: One line, for what is missing or does not load.
        """
        folder = local_folder(path)
        model_folder = find_saved(folder).local_folder()
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        folders = (model_folder, model_folder)
        model, processor = load_pair(folders, EmuForConditionalGeneration, EmuProcessor, "cpu", **options)
        if isinstance(visual_decoder, VisualDecoder):
            return cls(model, processor, visual_decoder)
        if visual_decoder is None:
            visual_decoder = decoder_folder(folder) or model_folder
        elif (Path(visual_decoder) / FOLDER).is_dir():  # a run
            visual_decoder = Path(visual_decoder) / FOLDER
        return cls(model, processor, VisualDecoder.from_pretrained(visual_decoder, dtype, **parts))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes model, processor and `visual_decoder/` into one folder.

        Args:
            path: the folder; made if it does not exist.
        """
        self.model.save_pretrained(str(path))
        self.processor.save_pretrained(str(path))
        self.decoder.save_pretrained(Path(path) / FOLDER)

    def to(self, *args: Any, **kwargs: Any) -> "EmuPipeline":
        """Moves model and decoder.

        Args:
            args: as of `torch.nn.Module.to`.
            kwargs: as of `torch.nn.Module.to`.

        Returns:
            The pipeline.
        """
        self.model.to(*args, **kwargs)
        self.decoder.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        seed: int | Sequence[int] | None = 0,
        height: int | None = None,
        width: int | None = None,
        progress: bool | OnStep = True,
        sampling: LatentSampling | None = None,
    ) -> Any:
        """Paints the image that would follow a prompt.

        Args:
            prompt: pieces (text, PIL images, paths), or a list of prompts, which are painted in one batch.
            num_inference_steps: denoising steps.
            guidance_scale: how far to extrapolate from the empty prompt towards yours; 1 or less turns guidance off.
            seed: of the noise, one for all or one per prompt; None is random.
            height: pixels; None is the size of training.
            width: pixels; None is the size of training.
            progress: whether to show a progress bar.
            sampling: how a flow samples the latents that are painted.

        Returns:
            A PIL image; for a list of prompts, a list of images.

        Raises:
            ConfigError: the prompt or the size is not valid.
        """
        several = isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], list | tuple)
        if isinstance(prompt, list | tuple):
            lists = [isinstance(p, list | tuple) for p in prompt]
            if any(lists) and not all(lists):
                raise ConfigError("a prompt is a list of text and images; several prompts are a list of such lists")
        guided = guidance_scale > 1
        try:
            inputs = self.processor(prompt).to(self.model.device)
            latents = self.model.generate_image_embeddings(**inputs, guidance=guided, sampling=sampling, seed=seed)
        except ValueError as err:
            raise ConfigError(f"prompt: {err}") from None
        conditional, empty = latents.chunk(2) if guided else (latents, None)
        images = self.paint(
            conditional, empty, num_inference_steps, guidance_scale, seed, height, width, progress=progress
        )
        return images if several else images[0]

    def paint(
        self,
        latents: Tensor,
        empty: Tensor | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        seed: int | Sequence[int] | None = 0,
        height: int | None = None,
        width: int | None = None,
        progress: bool | OnStep = False,
    ) -> list[Image.Image]:
        """Images from latents, for example from `model.image_latents(pixels)`, which shows what these hold.

        Args:
            latents: [B, N, D], as the model predicts them or as `image_latents` gives them.
            empty: [B or 1, N, D]: latents of the empty prompt, for guidance; without it there is none.
            num_inference_steps: denoising steps.
            guidance_scale: how far to extrapolate from `empty`; 1 or less turns guidance off.
            seed: of the noise, one for all or one per image; None is random.
            height: pixels; None is the size of training.
            width: pixels; None is the size of training.
            progress: whether to show a progress bar.

        Returns:
            One PIL image per row.
        """
        device = self.decoder.unet.device
        moved = None if empty is None else empty.to(device)
        images = self.decoder.paint(
            latents.to(device), moved, num_inference_steps, guidance_scale, seed, height, width, progress
        )
        flags = self.decoder.flagged(images)
        if any(flags):
            numbers = ", ".join(str(i + 1) for i, flag in enumerate(flags) if flag)
            warnings.warn(f"the safety checker flagged image {numbers} of {len(flags)}: blacked out", stacklevel=2)
        kept = [image * (not flag) for image, flag in zip(images, flags, strict=True)]
        return [Image.fromarray(i.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()) for i in kept]


def decoder_folder(path: Path) -> Path | None:
    """`visual_decoder/` of a run or a model's folder; of a model in a run, the run's."""
    places = (path, path / "model", *([path.parent] if path.name in ("model", "ema") else []))
    return next((place / FOLDER for place in places if (place / FOLDER).is_dir()), None)


def local_folder(path: str | os.PathLike[str]) -> Path:
    """The folder itself, or a hub repository's, downloaded. Raises ConfigError if it is neither."""
    if isinstance(find_saved(path).folder(), Path):
        return Path(path).expanduser()
    if away := unreachable():
        raise ConfigError(f"no such folder, and {away}: {path}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(str(path), ignore_patterns=["*.bin", "*.pt", "*.ckpt", "*.msgpack"]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"no such folder, and not found on the hub: {path} ({reason})") from None
