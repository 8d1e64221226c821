"""Two forked ranks: python family_runner.py OUT.pt writes the summed gradients of both halves of a batch."""

import sys

import torch
import torch.distributed as dist
from rank_runner import fork_ranks

from nextembed.core import distributed
from nextembed.core.randomness import drawn_by
from nextembed.models.nepa import NepaModel
from nextembed.nn.quantize import Codebook
from nextembed.objectives.jepa import IjepaSettings, JepaSettings, VjepaSettings
from nextembed.objectives.joint_embedding import LeJepaSettings, SimSiamSettings
from nextembed.objectives.mar import MarSettings
from nextembed.objectives.scales import VarSettings
from nextembed.objectives.tokenized import LlamaGenSettings
from nextembed.objectives.tokenizer import TokenizerSettings

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
         "num_channels": 1, "layerscale_value": 1.0, "pos_embed_rescale": None}  # fmt: skip
NUM = 6


def gradients(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over NUM images on this rank's share; the caller sums them over ranks."""
    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(NUM, 2, 1, 8, 8, generator=generator)
    rows = slice(rank * NUM // world, (rank + 1) * NUM // world)
    found = {}
    for settings in (SimSiamSettings(width=8), LeJepaSettings(width=4, num_directions=8, weight=0.5)):
        torch.manual_seed(0)
        backbone = NepaModel(**SIZES).build()
        if isinstance(settings, LeJepaSettings):
            settings = settings.model_copy(update={"crops": settings.crops.model_copy(update={"num_local": 0})})
        objective = settings.build(backbone)
        torch.manual_seed(5 + rank)  # the directions come from rank 0, independent of other seeds
        output = objective(backbone, {"global_views": crops[rows]})
        (output.loss_sum / NUM).backward()
        for part in (backbone, objective):
            for name, parameter in part.named_parameters():
                if parameter.grad is not None:
                    found[f"{settings.kind}.{type(part).__name__}.{name}"] = parameter.grad
        for name, buffer in objective.named_buffers():
            if "running" in name:
                found[f"{settings.kind}.{name}"] = buffer / world
    found |= tokenizer_gradients(rank, crops[rows, 0], world) | token_gradients(crops[rows, 0], rows)
    found |= of_jepa(rows, generator)
    found |= mar_gradients(crops[:, 0], rows)
    book = Codebook(4, 3)
    x = torch.randn(40, 3, generator=generator)
    book.fit(x[rank * 40 // world : (rank + 1) * 40 // world])
    return found | {"codes": book.codes / world}


def tokenizer_gradients(rank: int, pixels: torch.Tensor, world: int) -> dict[str, torch.Tensor]:
    """Gradients of the tokenizer, and the usage counts of codes over all ranks."""
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build()
    objective = TokenizerSettings(num_codes=6, width=8, revive_steps=2, scales=[1, 2]).build(backbone).train()
    objective.prepare(backbone, [{"pixel_values": pixels}])
    (objective(backbone, {"pixel_values": pixels}).loss_sum / NUM).backward()
    objective.after_step(backbone, 1, 4)
    found = {f"tokenizer.{n}": p.grad for n, p in objective.named_parameters() if p.grad is not None}
    return found | {
        "usage": objective.usage.float() / world,
        "started": objective.tokenizer.quantizer.codes.detach() / world,
    }


def of_jepa(rows: slice, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Gradients of I-JEPA and V-JEPA; the blocks of an image do not depend on its rank."""
    predictor = {"predictor_width": 8, "predictor_layers": 1, "predictor_heads": 2}
    clips = {**SIZES, "hidden_size": 24, "num_channels": 3, "num_frames": 4}
    return of(IjepaSettings(**predictor), SIZES, rows, generator) | of(
        VjepaSettings(**predictor), clips, rows, generator
    )


def of(
    settings: JepaSettings, sizes: dict[str, int], rows: slice, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    backbone = NepaModel(**{**sizes, "image_size": 16}).build()
    objective = settings.build(backbone)
    images = torch.randn(NUM, backbone.config.num_channels, 16, 16, generator=generator)
    mask = torch.ones(backbone.num_latents(16, 16), dtype=torch.bool)
    drawn = [settings.draw({"pixel_values": image, "latent_mask": mask}, torch.Generator().manual_seed(number))
             for number, image in enumerate(images)]  # fmt: skip
    parts = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    whole = {"pixel_values": images, "latent_mask": mask.expand(NUM, -1), **parts}
    output = objective(backbone, {name: value[rows] for name, value in whole.items()})
    (output.loss_sum / objective.count_targets(whole)).backward()
    modules = (backbone, objective)
    return {f"{settings.kind}.{type(module).__name__}.{name}": parameter.grad for module in modules
            for name, parameter in module.named_parameters() if parameter.grad is not None}  # fmt: skip


def mar_gradients(pixels: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
    """Gradients of MAR. Pixel scales are over all ranks; mask rates vary, so ranks have different target counts."""
    torch.manual_seed(0)
    backbone = NepaModel(**{**SIZES, "patch_size": 2}).build()
    settings = MarSettings(decoder_width=8, decoder_heads=2, decoder_layers=1, head_blocks=1, num_classes=3)
    objective = settings.build(backbone)
    valid = torch.ones(NUM, 17, dtype=torch.bool)
    drawn = [settings.draw({"latent_mask": valid[i]}, torch.Generator().manual_seed(i)) for i in range(NUM)]
    batch = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    batch |= {"pixel_values": 3 + pixels, "latent_mask": valid, "labels": torch.arange(NUM) % 3}
    total = objective.count_targets(batch)
    own = {name: value[rows] for name, value in batch.items()}
    objective.prepare(backbone, [own])
    with drawn_by(torch.arange(NUM)[rows]):
        (objective(backbone, own).loss_sum / total).backward()
    parts = {"backbone": backbone, "objective": objective}
    return {f"mar.{part}.{name}": parameter.grad for part, module in parts.items()
            for name, parameter in module.named_parameters() if parameter.grad is not None}  # fmt: skip


def token_gradients(pixels: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
    """Gradients of LlamaGen and VAR on codes of an untrained tokenizer."""
    found = {}
    labels, dropped = torch.arange(NUM)[rows] % 3, torch.arange(NUM)[rows] == 4
    shape = {"image_shape": (8, 8), "patch_shape": (4, 4), "num_channels": 1, "num_codes": 5, "code_width": 3,
             "width": 8, "num_blocks": 0}  # fmt: skip
    for kind, scales in ((LlamaGenSettings, []), (VarSettings, [1, 2])):
        torch.manual_seed(0)
        backbone = NepaModel(**SIZES).build()
        objective = kind(tokenizer_shape={**shape, "scales": scales}, num_classes=3).build(backbone)
        torch.nn.init.normal_(objective.head.weight)
        images = {"pixel_values": pixels, "labels": labels, "class_dropped": dropped,
                  "latent_mask": torch.ones(len(pixels), 5, dtype=torch.bool)}  # fmt: skip
        (objective(backbone, images).loss_sum / NUM).backward()
        for part in (backbone, objective):
            found |= {f"{kind.__name__}.{type(part).__name__}.{n}": p.grad for n, p in part.named_parameters()
                      if p.grad is not None}  # fmt: skip
    return found


if __name__ == "__main__":
    fork_ranks(2)
    dist.init_process_group("gloo")
    found = gradients(distributed.rank(), 2)
    for value in found.values():
        dist.all_reduce(value)
    if distributed.is_main():
        torch.save(found, sys.argv[1])
    distributed.wait()
    distributed.stop()
