"""`generate`: output of an Emu or Omni model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import (
    check_target,
    checked_file,
    free_folder,
    new_folder,
    open_folder,
    replacing,
    to_json,
    write_json,
    write_text,
)
from ..core.terminal import print
from ..errors import ConfigError, unknown
from .arguments import Model
from .options import command
from .prompting import Given, Loading, Wanted
from .words import check_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.chat import Talker
    from ..inference.prompts import Prompt
    from ..inference.settings import Painting, Sampling

TARGETS = ("auto", "text", "image", "mixed")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@command(
    given=Given,
    wanted=Wanted,
    sampling="inference.settings:Sampling",
    painting="inference.settings:Painting",
    loading=Loading,
)
def generate(
    checkpoint: Model,
    given: Given,
    wanted: Wanted,
    sampling: "Sampling",
    painting: "Painting",
    loading: Loading,
    pieces: Annotated[
        list[str] | None,
        typer.Argument(metavar="PIECE", help="Text, image files and video files, in reading order."),
    ] = None,
) -> None:
    """Let an Emu or Omni model continue text, images, videos and sounds.

    The output is text, an image, or any other modality of the model.
    An image alone is captioned, --question is answered, two images are blended with --target image, and examples before
    the last piece are few-shot prompts. --sample and --stream use a single beam.

    \b
    Examples:
      nextembed generate runs/emu dog.png --question "What is it doing?"
      nextembed generate runs/emu "a red apple" -o apple.png
      nextembed generate runs/omni --text "a red apple" --target image -o apple.png
    """
    check_model(checkpoint)
    if is_omni(checkpoint):
        from .omni import continue_document

        if given.prompts or given.question or "num_beams" in sampling.model_fields_set or wanted.stream:
            raise ConfigError("--input, --question, --beams and --stream are for Emu models")
        if painting.model_fields_set & {"latent_temperature", "latent_guidance"}:
            raise ConfigError(
                "--latent-temperature and --latent-guidance are for Emu models; take --temperature and --guidance"
            )
        guidance = painting.guidance_scale if "guidance_scale" in painting.model_fields_set else 1.0
        continue_document(checkpoint, pieces or [], given, wanted, sampling, loading, guidance)
        return
    if given.audio or given.series or given.piece:
        raise ConfigError("--audio, --series and --piece are for Omni models")
    words = [*(pieces or []), *(value for _, value in given.named)]
    write_or_paint(checkpoint, words, given, wanted, sampling, painting, loading)


def write_or_paint(
    checkpoint: str,
    words: list[str],
    given: Given,
    wanted: Wanted,
    sampling: "Sampling",
    painting: "Painting",
    loading: Loading,
) -> None:
    """Generates with an Emu model; pieces are text or names of files."""
    task = _task(wanted.target, wanted.output, given.prompts)
    sampling = with_beams(sampling, wanted.stream)
    one_by_one = wanted.stream or task == "mixed"
    _check_prompts(bool(words or given.question), given.prompts is not None, one_by_one)
    from ..inference.chat import Talker
    from ..inference.prompts import Prompt, read_piece, read_prompts

    rows = read_prompts(given.prompts, given.frames) if given.prompts else [
        Prompt([read_piece(word, given.frames) for word in words], given.question)
    ]  # fmt: skip
    talker = Talker.load(checkpoint, loading.weights, loading.device)
    if task == "image":
        talker.pipeline  # noqa: B018  (before a folder is made)
        progress = given.prompts is None and sys.stderr.isatty()

        def paint(row: Prompt) -> "Image":
            pieces = [*row.pieces, *([{"text": row.question}] if row.question else [])]
            return talker.paint(pieces, **painting.model_dump(), seed=sampling.seed, progress=progress)

        _paint(paint, rows, wanted.output, many=given.prompts is not None)
    elif task == "mixed":
        _mixed(talker, rows[0], wanted.output, sampling, painting)
    elif given.prompts is not None:
        _many(talker, rows, wanted.output, sampling, given.batch_size)
    else:
        _one(talker, rows[0], wanted.output, sampling, wanted.stream)


def with_beams(sampling: "Sampling", stream: bool) -> "Sampling":
    """One beam if tokens are sampled or streamed. Raises ConfigError if more were requested."""
    if not (sampling.do_sample or stream):
        return sampling
    if "num_beams" in sampling.model_fields_set and sampling.num_beams > 1:
        raise ConfigError(f"--{'sample' if sampling.do_sample else 'stream'} needs --beams 1")
    return sampling.model_copy(update={"num_beams": 1})


def _check_prompts(given: bool, from_file: bool, one_by_one: bool) -> None:
    if from_file and (given or one_by_one):
        raise ConfigError("--input cannot be combined with pieces, --question, --stream or --target mixed")
    if not (from_file or given):
        raise ConfigError("give text or an image after the checkpoint, or --input FILE.jsonl")


def is_omni(checkpoint: str) -> bool:
    """Whether a run, checkpoint, model folder or hub id is an Omni model. Raises ConfigError if it is no model."""
    from ..core.run_folder import find_saved
    from ..models.loading import model_type

    return model_type(find_saved(checkpoint).folder()) == "omni"


def _task(task: str, output: Path | None, prompts: Path | None) -> str:
    """The kind of output of an Emu model."""
    if task not in TARGETS:
        raise ConfigError(unknown("--target", task, TARGETS))
    picture = output is not None and output.suffix.lower() in PICTURES
    if task == "auto" and picture:
        task = "image"
    if task == "image" and prompts is None and not picture:
        raise ConfigError(f"an image needs an output file: -o FILE.png{'' if output is None else f', not {output}'}")
    if task != "image" and picture:
        raise ConfigError(f"--target {task} does not write an image, but -o {output} names an image file")
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: no such folder: {output.parent}")
    if output is not None:  # before minutes of generation
        folder = task == "mixed" or (task == "image" and prompts is not None)
        check_target(output) if folder else checked_file(output)
    return task


def _one(talker: "Talker", row: "Prompt", output: Path | None, sampling: "Sampling", stream: bool) -> None:
    prompt, stop = talker.pieces_of(row), talker.stop if row.question else None
    if stream:
        (text,) = talker.write([prompt], sampling, on_text=say, stop=stop)
        print()
    else:
        (text,) = talker.write([prompt], sampling, stop=stop)
        print(text)
    if output is not None:
        write_text(output, text + "\n")


def _many(talker: "Talker", rows: list["Prompt"], output: Path | None, sampling: "Sampling", size: int) -> None:
    texts = talker.write([talker.pieces_of(row) for row in rows], sampling, batch_size=size)
    lines = []
    for row, text in zip(rows, texts, strict=True):
        answer = text.split(talker.stop)[0].strip() if row.question and talker.stop else text
        lines.append(to_json({**(row.row or {}), "output": answer}) + "\n")
    if output is None:
        print("".join(lines), end="")
    else:
        write_text(output, "".join(lines))
        print(f"Saved:  {output} ({len(lines)} answers)")


def _paint(paint: Callable[["Prompt"], "Image"], rows: list["Prompt"], output: Path | None, many: bool) -> None:
    if not many:
        assert output is not None
        with replacing(output) as file:
            paint(rows[0]).save(file)
        print(f"Saved:  {output}")
        return
    folder = output or free_folder(Path(), "painted")
    open_folder(folder)
    for number, row in enumerate(rows):
        with replacing(folder / f"{number:04d}.png") as file:
            paint(row).save(file)
    print(f"Saved:  {folder} ({len(rows)} pictures)")


def _mixed(talker: "Talker", row: "Prompt", output: Path | None, sampling: "Sampling", painting: "Painting") -> None:
    """Text to the terminal, pictures and document.json to the folder."""
    from ..nn.latent_flow import LatentSampling

    options = sampling.model_dump(include={"max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
                                           "repetition_penalty", "seed"})  # fmt: skip
    how = LatentSampling(painting.latent_temperature, painting.latent_guidance)
    steps = painting.num_inference_steps
    made = talker.document(talker.pieces_of(row), num_inference_steps=steps, sampling=how, **options)
    lines: list[dict[str, str | None]] = []
    pictures: dict[str, Image] = {}
    for span in made:
        if span.kind == "text":
            print(span.text)
            lines.append({"type": "text", "text": span.text})
            continue
        name = f"{sum(line['type'] == 'image' for line in lines) + 1:02d}.png"
        there = span.image is not None and output is not None
        hint = "" if span.image is not None else ": the checkpoint has no visual_decoder/ to generate it"
        print(f"[image{f': {output}/{name}' if there else hint}]")
        lines.append({"type": "image", "image": name if there else None})
        if there:
            pictures[name] = span.image
    if output is not None:
        with new_folder(output) as folder:
            for name, image in pictures.items():
                image.save(folder / name)
            write_json(folder / "document.json", {"segments": lines})


def say(text: str) -> None:
    print(text, end="", flush=True)
