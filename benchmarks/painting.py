"""Quality of a small pixel decoder that reconstructs images from latents, after fixed training time on one thread.

    python benchmarks/painting.py --encoder runs/nepa_demo/model --data path/to/emoji --output results.json

The condition is the output of a frozen encoder and a frozen random connector (mean of the tokens over a 4 x 4 grid, or
queries of a causal transformer), so that only the decoder is measured. Images of the test split are reconstructed and
scored by retrieval in raw pixels (is the original the nearest test image?) and mean squared error. Each setting of
--compare is trained for --seconds of CPU time. A contact sheet next to the output shows original images and
reconstructions without and with guidance.
"""

import argparse
import copy
import io
import json
import math
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, LlamaConfig

import nextembed  # noqa: F401
from nextembed.core.config import apply_overrides
from nextembed.models.emu import EmuConfig, EmuForConditionalGeneration, PixelDecoder
from nextembed.models.emu.processing_emu import to_rgb
from nextembed.objectives import VisualDecoderSettings

WIDTH, LATENTS = 256, 16
GUIDANCE = (1.0, 3.0)


def pictures(folder: Path, split: str, vendor: str, size: int) -> Tensor:
    """Images of a vendor, [R, 3, size, size] in [-1, 1], on white."""
    rows = pq.read_table(folder / f"{split}.parquet", columns=["image", "vendor"]).to_pylist()
    images = [to_rgb(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows if row["vendor"] == vendor]
    squashed = [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]
    flat = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in squashed])
    return flat.view(-1, size, size, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def frozen_emu(encoder: str, connector: str, layer: int) -> EmuForConditionalGeneration:
    """A trained encoder with a random connector; the embedding of the empty prompt is also from random weights."""
    visual = AutoModel.from_pretrained(encoder)
    torch.manual_seed(0)
    language = LlamaConfig(vocab_size=64, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
                           num_attention_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    former = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 3, "dropout_rate": 0.0}
    config = EmuConfig(vision_config=visual.config, text_config=language, causal_former_config=former,
                       connector=connector, num_image_latents=LATENTS, vision_layer=layer, image_token_id=60,
                       image_start_token_id=61, image_end_token_id=62, pad_token_id=0)  # fmt: skip
    model = EmuForConditionalGeneration(config).eval()
    model.model.visual.load_state_dict(visual.state_dict())
    return model


class Cached:
    """A frozen model whose latents are read from a table, so that each image is encoded once."""

    def __init__(self, model: EmuForConditionalGeneration, latents: Tensor):
        self.model, self.table, self.config, self.rows = model, latents, model.config, torch.arange(0)

    def image_latents(self, pixel_values: Tensor) -> Tensor:
        return self.table[self.rows]

    def __getattr__(self, name: str):
        return getattr(self.model, name)


def train(settings: VisualDecoderSettings, cached: Cached, images: Tensor, args: argparse.Namespace) -> tuple:
    """The trained objective and its number of training steps."""
    torch.manual_seed(1)
    objective = settings.build(cached).train()
    weights = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    began, step = time.process_time(), 0
    while (share := (time.process_time() - began) / args.seconds) < 1:
        rate = args.learning_rate * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        cached.rows = torch.randint(len(images), (args.batch_size,))
        output = objective(cached, {"pixel_values": images[cached.rows]})
        optimizer.zero_grad()
        (output.loss_sum / args.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        objective.after_step(cached, step, 20 * 250)  # a fit after each 250 steps
        if step % 100 == 0:
            print(f"step {step}  {share:.0%}  loss {output.loss_sum / args.batch_size:.4f}", flush=True)
    return objective.eval(), step


def scores(painted: Tensor, pictures: Tensor) -> dict[str, float]:
    """Scores of painted [n, ...] as reconstructions of the first n pictures; both in [0, 1]."""
    near = torch.cdist(painted.flatten(1), pictures.flatten(1)).topk(5, largest=False).indices
    right = near == torch.arange(len(painted))[:, None]
    error = (painted - pictures[: len(painted)]).square().mean()
    return {"top1": right[:, 0].float().mean().item(), "top5": right.any(1).float().mean().item(), "mse": error.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--connector", default="pooled_grid", choices=["pooled_grid", "causal_former"])
    parser.add_argument("--vendor", default="noto")
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-painted", type=int, default=96)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compare", nargs="*", default=[""], help="e.g. decoder.prediction=epsilon,standardise=false")
    parser.add_argument("--output", type=Path, default=Path("painting.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = frozen_emu(args.encoder, args.connector, args.layer)
    size = model.config.image_size
    images, held_out = (pictures(args.data, split, args.vendor, size) for split in ("train", "test"))
    with torch.no_grad():
        latents, unseen = (torch.cat([model.image_latents(p) for p in x.split(256)]) for x in (images, held_out))
    found, truth = [], held_out / 2 + 0.5
    for number, changes in enumerate(args.compare):
        base = VisualDecoderSettings(decoder=PixelDecoder(image_size=size), ema_decay=0.995)
        settings = apply_overrides(base, changes.split(",") if changes else [])
        objective, steps = train(settings, Cached(model, latents), images, args)
        decoder = copy.copy(objective.decoder)
        decoder.unet = objective.decoder.unet if objective.ema is None else objective.ema.network
        condition, empty = objective.standardised(unseen[: args.num_painted]), objective.standardised(objective.empty)
        line = {"changes": changes, "steps": steps, "train_images": len(images), "test_images": len(held_out)}
        sheet = [truth[:24]]
        for scale in GUIDANCE:
            painted = decoder.paint(condition, empty[None], args.steps, scale)
            line[f"guidance_{scale:g}"] = scores(painted, truth)
            sheet.append(painted[:24])
        print(json.dumps(line), flush=True)
        found.append(line)
        rows = torch.cat([torch.cat(list(row), -1) for row in sheet], -2)
        image = Image.fromarray(rows.mul(255).round().byte().permute(1, 2, 0).numpy())
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(
            args.output.with_name(f"{args.output.stem}_{number}.png")
        )
    arguments = {k: v for k, v in vars(args).items() if k not in ("data", "encoder", "output")}
    args.output.write_text(json.dumps({"arguments": arguments, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
