"""From image latents to pixels by diffusion: a UNet that attends to the latents, with or without a VAE. It imports
diffusers (extra `paint`) when first used."""

import copy
import inspect
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.files import new_folder
from ...core.quiet import no_progress_bar
from ...core.saved import checked, read_json
from ...errors import ConfigError, MissingExtra, unknown
from ...nn.latent_flow import row_generators

OnStep = Callable[[int, int], object]

FOLDER = "visual_decoder"  # beside the model it belongs to
PARTS = ("unet", "vae", "scheduler", "feature_extractor", "safety_checker")  # the folders in it, as Stable Diffusion's


def diffusers() -> Any:
    """The library. Raises MissingExtra where it is not installed."""
    try:
        import diffusers as library
    except ImportError:
        raise MissingExtra("diffusers", "paint") from None
    return library


class VisualDecoder(nn.Module):
    """Paints images from image latents [B, N, D], which the UNet's cross-attention takes as they are.

    Args:
        unet: `UNet2DConditionModel` with cross_attention_dim D, or a `LatentUNet`.
        scheduler: any scheduler of diffusers that has `alphas_cumprod`.
        vae: `AutoencoderKL`, or None: the UNet then paints pixels, 3 channels or, folded, 3 p^2 (patches of p x p
            pixels).
        safety_checker: given together with `feature_extractor`, or not at all.
        feature_extractor: what the safety checker reads images with.

    Source:
        Emu (arXiv 2307.05222), section 2.3; latent diffusion (arXiv 2112.10752).
    """

    def __init__(
        self, unet: Any, scheduler: Any, vae: Any = None, feature_extractor: Any = None, safety_checker: Any = None
    ):
        super().__init__()
        self.unet, self.vae, self.safety_checker = unet, vae, safety_checker
        self.scheduler, self.feature_extractor = scheduler, feature_extractor
        self.pretrained: Path | None = None  # the folder that training starts from
        self.knows_latents = False  # whether its cross-attention has been trained on latents as they are
        channels = unet.config.in_channels
        self.patch_size = 1 if vae is not None else round((channels / 3) ** 0.5)
        if vae is not None and vae.config.latent_channels != channels:
            raise ConfigError(f"the UNet outputs {channels} channels, the VAE has {vae.config.latent_channels}")
        if vae is None and 3 * self.patch_size**2 != channels:
            raise ConfigError(f"the UNet outputs {channels} channels, which are not pixels: it needs its vae/")
        if (safety_checker is None) != (feature_extractor is None):
            raise ConfigError("safety_checker and feature_extractor belong together: give both or none")

    @property
    def latent_width(self) -> int:
        """D."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def mean_map(self) -> nn.Linear | None:
        """The linear map from latents to mean images of a `LatentUNet`."""
        return cast(nn.Linear | None, dict(self.unet.named_children()).get("mean"))

    @property
    def stride(self) -> int:
        """Side of one position of the UNet, in pixels."""
        return self.patch_size if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_size(self) -> int:
        """Side of images that the UNet was made for, in pixels."""
        return int(self.unet.config.sample_size) * self.stride

    def check_width(self, width: int) -> None:
        """Checks that latents fit the cross-attention.

        Args:
            width: D of the latents.

        Raises:
            ConfigError: the UNet expects another width.
        """
        if width != self.latent_width:
            raise ConfigError(f"the UNet expects {self.latent_width}-wide latents, the model gives {width}")

    def encode(self, images: Tensor) -> Tensor:
        """What is diffused: the pixels, or with a VAE a sample from its distribution.

        Args:
            images: [B, 3, H, W] in [-1, 1].

        Returns:
            [B, C, h, w].
        """
        if self.vae is None:
            return F.pixel_unshuffle(images, self.patch_size)
        x = self.vae.encode(images.to(self.vae.dtype)).latent_dist.sample()
        return ((x - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor).float()

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`.

        Args:
            x: [B, C, h, w].

        Returns:
            [B, 3, H, W] in [-1, 1].
        """
        if self.vae is None:
            return F.pixel_shuffle(x, self.patch_size).clamp(-1, 1)
        x = x / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return self.vae.decode(x.to(self.vae.dtype)).sample.float().clamp(-1, 1)

    def forward(self, x: Tensor, timesteps: Tensor, latents: Tensor) -> Tensor:
        """The UNet's prediction.

        Args:
            x: noisy input [B, C, h, w].
            timesteps: int64 [B].
            latents: the condition, [B, N, D].

        Returns:
            [B, C, h, w]; whether noise, sample or v is set in the scheduler's `prediction_type`.
        """
        dtype = self.unet.dtype
        return self.unet(x.to(dtype), timesteps, encoder_hidden_states=latents.to(dtype)).sample.float()

    @torch.no_grad()
    def paint(
        self,
        latents: Tensor,
        empty: Tensor | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        seed: int | Sequence[int] | None = 0,
        height: int | None = None,
        width: int | None = None,
        progress: bool | OnStep = False,
    ) -> Tensor:
        """Images from latents.

        The noise prediction is empty + guidance_scale (conditional - empty), both in one batch; at guidance_scale <= 1,
        or without `empty`, the conditional one alone.

        Args:
            latents: [B, N, D].
            empty: [B, N, D] or [1, N, D]: latents of the empty prompt, for guidance.
            num_inference_steps: steps of the scheduler.
            guidance_scale: how strongly images follow the latents; 1 is no guidance.
            seed: of the starting noise, the same for every image, so that one does not depend on its neighbours; or one
                for each image; None: random.
            height: pixels; None: as trained.
            width: pixels; None: as trained.
            progress: whether a progress bar is shown; or what is called after each step with how many are done, and of
                how many. An error that it raises ends the painting.

        Returns:
            [B, 3, H, W], float32, in [0, 1].

        Raises:
            ConfigError: For sizes that do not fit.
        """
        rows = len(latents)
        self.check_width(latents.shape[-1])
        shape = self._shape(height, width)
        generators = row_generators(seed, rows)
        x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.unet.device)
        guided = empty is not None and guidance_scale > 1
        condition = torch.cat((latents, empty.expand_as(latents))) if guided and empty is not None else latents
        scheduler = copy.deepcopy(self.scheduler)  # steps change its state
        scheduler.set_timesteps(num_inference_steps, device=x.device)
        x = x * scheduler.init_noise_sigma
        known = inspect.signature(scheduler.step).parameters
        extra = {"generator": generators} if "generator" in known and None not in generators else {}
        for t in _watched(scheduler.timesteps, progress):
            scaled = scheduler.scale_model_input(x, t)
            pair = torch.cat((scaled, scaled)) if guided else scaled
            found = self(pair, t.expand(len(pair)), condition)
            if guided:
                conditional, unconditional = found.chunk(2)
                found = unconditional + guidance_scale * (conditional - unconditional)
            x = scheduler.step(found, t, x, **extra).prev_sample
        return self.decode(x) / 2 + 0.5

    def _shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        sides = [self.image_size if side is None else side for side in (height, width)]
        for side in sides:
            if side < self.stride or side % self.stride:
                raise ConfigError(f"height and width must be multiples of {self.stride} pixels, got {side}")
        return self.unet.config.in_channels, sides[0] // self.stride, sides[1] // self.stride

    @torch.no_grad()
    def flagged(self, images: Tensor) -> list[bool]:
        """Images that the safety checker rejects.

        Args:
            images: [B, 3, H, W] in [0, 1].

        Returns:
            One bool per image; all False without a safety checker.
        """
        if self.safety_checker is None:
            return [False] * len(images)
        pictures = [image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy() for image in images]
        pixels = self.feature_extractor(pictures, return_tensors="pt").pixel_values
        device, dtype = self.safety_checker.device, self.safety_checker.dtype
        copies = [image.clone() for image in images]  # it blackens what it is given
        return [bool(flag) for flag in self.safety_checker(clip_input=pixels.to(device, dtype), images=copies)[1]]

    @torch.no_grad()
    def fold_standardisation(self, mean: Tensor, std: Tensor, unet: nn.Module | None = None) -> None:
        """Changes the cross-attention, and the map of a `LatentUNet`, so that they read latents as they are, where they
        read (latents - mean) / std before.

        The function stays the same: keys lose a part that is equal for all latents, which softmax does not see; that of
        values moves into the output's bias.

        Args:
            mean: [D].
            std: [D].
            unet: another UNet of the same kind, for example an average; None changes the decoder's own.
        """
        for name, layer in (unet or self.unet).named_modules():
            if name.endswith(".attn2"):
                for matrix in (layer.to_k, layer.to_v):
                    matrix.weight /= std.to(matrix.weight)
                out = layer.to_out[0]
                out.bias -= out.weight @ (layer.to_v.weight @ mean.to(out.weight))
            elif name == "mean":  # of a LatentUNet
                times = layer.in_features // len(mean)
                layer.weight /= std.to(layer.weight).repeat(times)
                layer.bias -= layer.weight @ mean.to(layer.weight).repeat(times)

    def save_weights(self, folder: Path, unet: dict[str, Tensor], shift: tuple[Tensor, Tensor] | None = None) -> None:
        """Writes the decoder with other weights of the UNet. Safety checker and feature extractor of the decoder that
        this one was trained from are copied.

        Args:
            folder: an existing folder.
            unet: all weights of the UNet, on the CPU.
            shift: mean and std [D] for `fold_standardisation`.
        """
        made = type(self.unet).from_config(self.unet.config)
        made.load_state_dict(unet)
        changed = VisualDecoder(made, self.scheduler, self.vae)
        if shift is not None:
            changed.fold_standardisation(*shift)
        changed._write(folder)
        for name in ("feature_extractor", "safety_checker"):
            if self.pretrained is not None and (self.pretrained / name).is_dir():
                shutil.copytree(self.pretrained / name, folder / name)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the folders of all parts, as safetensors. A decoder in the folder is replaced.

        Args:
            folder: made if it does not exist.

        Raises:
            ConfigError: the folder holds something else, which stays as it is.
        """
        folder = Path(folder)
        own = folder.is_dir() and all(path.name in PARTS for path in folder.iterdir())
        with new_folder(folder, replace=own) as scratch:
            self._write(scratch)

    def _write(self, folder: Path) -> None:
        parts = {"unet": self.unet, "vae": self.vae, "scheduler": self.scheduler,
                 "feature_extractor": self.feature_extractor, "safety_checker": self.safety_checker}  # fmt: skip
        for name in PARTS:
            if (part := parts[name]) is not None:
                part.save_pretrained(str(folder / name))

    @classmethod
    def from_pretrained(cls, folder: str | Path | None, dtype: torch.dtype | None = None, **parts: Any) -> Any:
        """Loads a decoder, also that of Stable Diffusion or of Emu's own checkpoint.

        Args:
            folder: with unet/, scheduler/ and other parts; None if all parts are given.
            dtype: of the weights; None is float32.
            parts: unet, vae, scheduler, feature_extractor, safety_checker: a folder of its own, or the loaded thing;
                safety_checker=False leaves it out.

        Returns:
            The decoder, in eval mode.

        Raises:
            ConfigError: the folder is missing or does not load; missing and unexpected parameters are named.
        """
        if extra := set(parts) - set(PARTS):
            raise ConfigError(unknown("part of a visual decoder", sorted(extra)[0], PARTS))
        found = {name: parts.get(name) for name in PARTS}
        if found["safety_checker"] is False:
            found["feature_extractor"] = False
        for name in PARTS:
            if found[name] is None and folder is not None and (Path(folder) / name).is_dir():
                found[name] = Path(folder) / name
        missing = [name for name in ("unet", "scheduler") if found[name] is None]
        if missing:
            raise ConfigError(
                f"no visual decoder in {folder}: it has no {' and no '.join(f'{m}/' for m in missing)} (it needs "
                "unet/, scheduler/ and, unless its UNet outputs pixels, vae/)"
            )
        loaded = {n: _load(n, p, dtype) if isinstance(p, str | Path) else p or None for n, p in found.items()}
        return cls(**loaded).eval()


def _load(name: str, folder: str | Path, dtype: torch.dtype | None = None) -> Any:
    """One part from its folder. Raises ConfigError, one line."""
    library, folder = diffusers(), Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{name}: no such folder: {folder}")
    try:
        if name == "scheduler":
            return _scheduler_class(folder).from_pretrained(str(folder))
        if name == "feature_extractor":
            from transformers import CLIPImageProcessor

            return CLIPImageProcessor.from_pretrained(str(folder))
        if name == "safety_checker":
            from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as Checker

            kind: Any = Checker
        else:
            kind = _unet_class(folder) if name == "unet" else library.AutoencoderKL
        with no_progress_bar():
            options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
            model, info = kind.from_pretrained(str(folder), output_loading_info=True, **options)
    except ConfigError:
        raise
    except Exception as err:  # diffusers raises many kinds of errors for damaged files
        reason = " ".join(str(err).split())[:300] or type(err).__name__
        raise ConfigError(f"cannot load {name} from {folder}: {reason}") from None
    check_parameters(f"{name} in {folder}", info)
    return model


def check_parameters(what: str, info: dict[str, Any]) -> None:
    """Raises ConfigError that names missing and unexpected parameters."""
    surplus = [n for n in info["unexpected_keys"] if not n.endswith("position_ids")]  # a constant that old files store
    for words, names in (("lacks", sorted(info["missing_keys"])), ("has unknown", sorted(surplus))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(f"{what} {words} parameters: {', '.join(names[:3])}{more}")


def _unet_class(folder: Path) -> type[nn.Module]:
    file = folder / "config.json"
    if file.is_file() and checked(dict[str, object], read_json(file), file).get("_class_name") == "LatentUNet":
        from .visual_decoder_unet import LatentUNet

        return LatentUNet
    return cast(type[nn.Module], diffusers().UNet2DConditionModel)


def _scheduler_class(folder: Path) -> Any:
    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise ConfigError(f"scheduler: {folder} has no scheduler_config.json")
    values = checked(dict[str, Any], read_json(file), file)
    return scheduler_class(str(values.get("_class_name")))


def scheduler_class(name: str) -> Any:
    """diffusers' scheduler of that class name. Raises ConfigError with the nearest one."""
    library = diffusers()
    known = [n for n in dir(library) if n.endswith("Scheduler") and not n.startswith("Flax")]
    if name not in known:
        raise ConfigError(unknown("scheduler", name, known))
    return getattr(library, name)


def _watched(steps: Tensor, progress: bool | OnStep) -> Iterable[Tensor]:
    if callable(progress):
        for number, step in enumerate(steps):
            yield step
            progress(number + 1, len(steps))
        return
    if not progress:
        yield from steps
        return
    from rich.progress import track

    from ...core.console import PlainConsole

    yield from track(steps, "painting", len(steps), console=PlainConsole(stderr=True), transient=True)
