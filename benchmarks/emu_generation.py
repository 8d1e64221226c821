"""Seconds to predict the N latents of an image: the loop with a cache against one full forward pass per latent.

    python benchmarks/emu_generation.py

Both run in turn in this process on the same random model (language model of width 512, 8 layers) with prompts of 128
tokens; medians over rounds are reported. The loop without a cache works like the released Emu code: for each latent,
one forward pass over the whole sequence so far, prompts and empty prompts in one batch with right padding.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.blip_2 import Blip2VisionConfig

from nextembed.models.emu import EmuConfig, EmuForConditionalGeneration

RESULT = Path(__file__).parent / "results" / "emu_generation.json"
VOCABULARY, PROMPT = 4096, 128


def build(num_latents: int) -> EmuForConditionalGeneration:
    """A randomly initialised model; its encoder is tiny because no prompt here contains an image."""
    torch.manual_seed(0)
    config = EmuConfig(
        vision_config=Blip2VisionConfig(image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=1,
                                        num_attention_heads=2, intermediate_size=64),
        text_config=LlamaConfig(vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
                                num_attention_heads=8),
        causal_former_config={"d_model": 32, "d_kv": 8, "num_heads": 2, "d_ff": 64, "num_layers": 1},
        num_image_latents=num_latents,
        image_token_id=VOCABULARY - 1, image_start_token_id=VOCABULARY - 2, image_end_token_id=VOCABULARY - 3,
        pad_token_id=0,
    )  # fmt: skip
    return EmuForConditionalGeneration(config).eval()


@torch.no_grad()
def without_cache(model: EmuForConditionalGeneration, input_ids: Tensor, guidance: bool) -> Tensor:
    """The output of `generate_image_embeddings`, computed by full forward passes."""
    config, embed = model.config, model.get_input_embeddings()
    rows, length = input_ids.shape
    ids = F.pad(input_ids, (0, 1), value=config.image_start_token_id)
    ends = torch.full((rows,), length + 1)
    if guidance:
        empty = torch.zeros_like(ids)
        empty[:, 0], empty[:, 1] = config.bos_token_id, config.image_start_token_id
        ids, ends = torch.cat([ids, empty]), torch.cat([ends, torch.full((rows,), 2)])
    embeds, row, found = embed(ids), torch.arange(len(ids)), []
    for _ in range(config.num_image_latents):
        mask = (torch.arange(embeds.shape[1]) < ends[:, None]).long()
        hidden = model.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        latent = model.regression_head(hidden[row, ends - 1])
        found.append(latent)
        embeds = F.pad(embeds, (0, 0, 0, 1))
        embeds[row, ends] = latent
        ends = ends + 1
    return torch.stack(found, dim=1)


def clock() -> float:
    """Seconds of CPU time with one thread, so that other work on the machine hardly matters; else on the clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(model: EmuForConditionalGeneration, batch: int, guidance: bool, rounds: int) -> dict[str, Any]:
    ids = torch.randint(3, VOCABULARY - 3, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = model.config.bos_token_id
    model.generate_image_embeddings(ids, guidance=guidance)  # warm-up
    spent: dict[str, list[float]] = {"whole_sequence": [], "cached": []}
    latents: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name in spent:
            begin = clock()
            if name == "cached":
                latents[name] = model.generate_image_embeddings(ids, guidance=guidance)
            else:
                latents[name] = without_cache(model, ids, guidance)
            spent[name].append(clock() - begin)
    seconds = {name: statistics.median(values) for name, values in spent.items()}
    difference = (latents["whole_sequence"] - latents["cached"]).abs().max().item()
    if difference > 1e-5:
        raise SystemExit(f"the two loops differ by {difference:.1e}")
    return {"num_latents": model.config.num_image_latents, "batch": batch, "guidance": guidance, **seconds,
            "ratio": seconds["whole_sequence"] / seconds["cached"], "largest_difference": difference}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[32, 64], help="N (default: 32 64)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="prompts per batch (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for num_latents in args.latents:
        model = build(num_latents)
        for batch in args.batches:
            for guidance in (False, True):
                row = measure(model, batch, guidance, args.rounds)
                rows.append(row)
                pair = "with" if guidance else "without"
                print(
                    f"N {num_latents}, batch {batch}, {pair} the empty prompt: whole sequence "
                    f"{row['whole_sequence']:.2f} s, cached {row['cached']:.2f} s, {row['ratio']:.1f} x; "
                    f"largest difference {row['largest_difference']:.0e}",
                    flush=True,
                )
                save(args, rows)  # after each row, so that an interrupted run keeps its results


def save(args: argparse.Namespace, rows: list[dict]) -> None:
    result = {
        "command": shlex.join(["python", "benchmarks/emu_generation.py", *sys.argv[1:]]),
        "machine": platform.platform(),
        "threads": args.threads,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
