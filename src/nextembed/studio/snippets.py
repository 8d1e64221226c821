"""The Python that does what a panel shows. Each text runs as it stands; the tests run it."""


def runs_python(run: str) -> str:
    """Of the runs."""
    return f"""\
import nextembed

run = nextembed.open_run({run!r})
print(run.verdict().word, "-", run.verdict().sentence)
curve = [(line["step"], line["loss"]) for line in run.history() if "loss" in line]
best = run.probes().best() if run.probes() else None  # layer, pooling and attention that probed best
page = run.report()                                    # the report, written anew
"""


def explore_python(model: str, source: str = "emoji", index: int = 0) -> str:
    """Of looking inside, on an image of a data source."""
    return f"""\
import nextembed

seen = nextembed.visualize({model!r}, {source!r}, index={index})  # or a file, a PIL image, an array
inside = seen.inside
attention = inside.attention[inside.num_layers][0, :, seen.patch + 1]  # [heads, 1 + patches] of the query patch
cosines = inside.cosines(seen.patch)                                   # prediction against every patch
surprise, colours = inside.surprise[0], inside.colours(inside.num_layers)[0]
"""


def map_python(features: str) -> str:
    """Of the map and the search."""
    return f"""\
import nextembed
from nextembed.evaluation.features.index import open_features

bank = open_features({features!r})
key = bank.rows([0])[0]["key"]
near = nextembed.search({features!r}, key, top=12)  # or an image: a path, PIL, an array
print([(hit.key, hit.cosine) for hit in near])
"""


def compare_python(folder: str) -> str:
    """Of the comparison."""
    return f"""\
import nextembed

found = nextembed.Comparison.load({folder + "/comparison.json"!r})
table = found.table  # a pandas DataFrame: means, and NAME_sd
print(table)
"""


def talk_python(model: str) -> str:
    """Of talking and painting."""
    return f"""\
from PIL import Image
from nextembed import Conversation, Sampling, Talker

talker = Talker.load({model!r})
talk = Conversation()
talk.ask(Image.new("RGB", (32, 32), "red"), "What is this?")
answer, left_out = talker.reply(talk, Sampling(num_beams=1, max_new_tokens=16))
print(answer)
# talker.paint(["a red apple"], num_inference_steps=20, guidance_scale=3.0, seed=0), with a visual decoder
"""


def omni_python(model: str) -> str:
    """Of any modality in and out."""
    return f"""\
from nextembed.inference.generate import load_omni

model = load_omni({model!r})
made = model.generate(["red apple:"], target="image", temperature=0.8, seed=0)
print(made.kind, made.value.shape)
scores = model.score(["red apple:"], ["fire.", "fruit."], against=[[]])
"""
