"""The candle test: does the uncertainty of a model before touch match the evidence?

    python benchmarks/omni_candle.py --emoji EMOJI_FOLDER --out benchmarks/results/omni_candle.json \
        --figure docs/assets/omni_candle.png --calibration docs/assets/omni_candle_calibration.png

Trains `omni_candle` (mixture), `omni_candle_single` (one von Mises-Fisher density), `omni_candle_point` (a point
prediction), `omni_candle_flow` and `omni_candle_energy` (both sampled) with `--seeds` seeds each, unless RUNS/NAME_SEED
exists, and evaluates them on unseen pictures:
  known      things in the training data, in the same drawings with new shifts and scales
  style      the same things in another drawing style (twemoji; EMOJI_FOLDER: Parquet with image, vendor, name)
  unknown    things of the validation and test splits, which are not in the training data
(a) touch    from the picture alone: weight and samples of the first touch latent on the side of the real thing, against
             the rate at which it is real; position of the mean prediction between the two; generated curves
(b) settling the same, and "is it hot?", after 1, 2, 4 and 8 touch latents of the real thing and of a picture of it
(c) text     "what is it?" and "is it hot?" before and after touch: exact match, probability of yes against the rate
Intervals: the middle 95 % of 1,000 bootstrap samples over pictures, of means over seeds; sd: over seeds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.evaluation.language.scores import mean_metric
from nextembed.inference.generate import load_omni
from nextembed.models.omni.generation import Rollout, code_scores
from nextembed.nn.sampled import SampledDensity
from nextembed.run import fit
from nextembed.toys.candle import END, QUESTIONS, Candle, temperatures

VARIANTS = {"mixture": "omni_candle", "single": "omni_candle_single", "point": "omni_candle_point",
            "flow": "omni_candle_flow", "energy": "omni_candle_energy"}  # fmt: skip
TOUCHED = (0, 1, 2, 4, 8)  # latents
PATCH = 4  # samples per latent
KINDS = ("room", "hot", "cold")
NUM_BANK, NEIGHBOURS, NUM_SAMPLES = 300, 5, 100


class View(NamedTuple):
    """A picture of a thing. rate: probability that the thing is real; touches: series [1, samples] by is_real."""

    name: str
    warmth: str
    rate: float
    picture: Tensor
    touches: dict[bool, Tensor]

    @property
    def hot_rate(self) -> float:
        return self.rate if self.warmth == "hot" else 0.0


def views(data: Candle, splits: list[str], num: int, first_seed: int) -> list[View]:
    """`num` views, not used in training, of each thing of some splits."""
    found = []
    for split in splits:
        rows = data.model_copy(update={"repeats": 1}).rows(split)  # type: ignore[arg-type]
        for i in range(len(rows)):
            for seed in range(first_seed, first_seed + num):
                touches = {}
                for real in (True, False):
                    document, truth = data.make(rows[i], "picture touch", seed, real, data.num_samples)
                    touches[real] = truth.touch
                picture = document["segments"][0]["value"]
                rate = 0.0 if truth.warmth == "room" else truth.real_rate
                found.append(View(truth.name, truth.warmth, rate, picture, touches))
    return found


class Bank:
    """True touch latents of each kind at one position in a series, used to classify other latents.

    directions [M, D]; kinds [M]: index into KINDS, 3 for begin and end latents.
    """

    def __init__(self, model: Any, patch: int, noise: float):
        modality = model.model.modality("touch")
        parts, kinds = [], []
        for number, kind in enumerate(KINDS):
            for seed in range(NUM_BANK):
                curve = temperatures(END[kind], (patch + 1) * PATCH, noise, 10**6 + seed)  # type: ignore[index]
                parts.append(modality.patches(curve).values[patch])
                kinds.append(number)
        latents = modality.embed(torch.stack(parts))
        self.values = torch.stack(parts)
        self.directions = F.normalize(torch.cat((latents, model.model.begin.weight)), dim=-1)
        self.kinds = torch.tensor(kinds + [3] * len(model.model.begin.weight))
        self.centres = [F.normalize(self.directions[self.kinds == n].mean(0), dim=-1) for n in range(3)]

    def kind(self, x: Tensor) -> Tensor:
        """The majority kind among the nearest true latents, [..., D] -> [...]; 3 if the nearest one has kind 3."""
        scores = F.normalize(x, dim=-1) @ self.directions.T
        near = self.kinds[scores.topk(NEIGHBOURS, dim=-1).indices]
        found = F.one_hot(near, 4).sum(-2).argmax(-1)
        return torch.where(self.kinds[scores.argmax(-1)] == 3, 3, found)

    def between(self, x: Tensor, kind: int) -> Tensor:
        """Relative position by angle of a direction between the mean latent of the room (0) and that of a kind (1)."""
        x = F.normalize(x, dim=-1)
        room, real = ((x @ self.centres[n]).clamp(-1, 1).arccos() for n in (0, kind))
        return room / (room + real)

    def told_apart(self) -> float:
        """Leave-one-out nearest-neighbour accuracy of the kind of true latents: an upper bound for predictions."""
        right = []
        scores = self.directions @ self.directions.T
        scores.fill_diagonal_(-2)
        own = self.kinds < 3
        near = self.kinds[scores[own].topk(NEIGHBOURS, dim=-1).indices]
        right = F.one_hot(near, 4).sum(-2).argmax(-1) == self.kinds[own]
        return float(right.float().mean())


@torch.no_grad()
def predicted(model: Any, shown: list[View], num: int, real: bool) -> Tensor:
    """Hidden states [N, D] from which touch latent number `num` (from 0) is predicted."""
    documents: list[list[Any]] = [[v.picture] for v in shown]
    if num:
        for document, view in zip(documents, shown):
            document.append({"touch": view.touches[real][:, : num * PATCH]})
    rollout = Rollout(model, model.processor(documents))
    if not num:
        rollout.begin(model.processor.names.index("touch"))
    return rollout.hidden


@torch.no_grad()
def side(model: Any, shown: list[View], bank: Bank, num: int, real: bool, seed: int = 0) -> dict[str, Any]:
    """By view: share of the prediction of the next touch latent on the side of the real thing (hot or cold)."""
    hidden = predicted(model, shown, num, real)
    wanted = torch.tensor([KINDS.index(v.warmth) for v in shown])
    if model.density_head is None:
        found, mean = bank.kind(hidden)[:, None], hidden
        weights = torch.ones(len(shown), 1)
    else:
        density, mean = model.density_head(hidden), model.density_head(hidden).mean()
        if isinstance(density, SampledDensity):  # its samples are used as components
            directions = density.several(NUM_SAMPLES)
            found, weights = bank.kind(directions), torch.full(directions.shape[:2], 1 / NUM_SAMPLES)
        else:
            found, weights = bank.kind(density.directions), density.log_weights.exp()
    on_side = (weights * (found == wanted[:, None])).sum(-1)
    room = (weights * (found == 0)).sum(-1)
    result = {
        "weight": (on_side / (on_side + room).clamp(min=1e-6)).tolist(),
        "neither": (1 - on_side - room).tolist(),
        "between": [float(bank.between(m, int(w))) for m, w in zip(mean, wanted)],
    }
    if model.density_head is not None:
        generator = torch.Generator().manual_seed(seed)
        drawn = bank.kind(torch.stack([density.sample(generator) for _ in range(NUM_SAMPLES)]))  # [S, N]
        real_share, room_share = (drawn == wanted).float().mean(0), (drawn == 0).float().mean(0)
        result["sampled"] = (real_share / (real_share + room_share).clamp(min=1e-6)).tolist()
        result["sampled_neither"] = (1 - real_share - room_share).tolist()
        result["expected_cosine"] = density.expected_cosine().tolist()
    return result


@torch.no_grad()
def explained(model: Any, banks: dict[int, Bank]) -> float:
    """R2 of the touch values that the model decodes from the directions of true latents."""
    x = torch.cat([bank.directions[bank.kinds < 3] for bank in banks.values()])
    y = torch.cat([bank.values for bank in banks.values()])
    found = model.values_of("touch", x)
    return float(1 - (found - y).square().mean() / (y - y.mean(0)).square().mean())


def curves(model: Any, shown: list[View], num: int, seed: int) -> dict[str, Any]:
    """Touch series generated after each picture, and the share that ends like the real thing (mean of last samples)."""
    temperature = 0.0 if model.density_head is None else 1.0
    many = 1 if model.density_head is None else num
    documents = [[view.picture] for view in shown for _ in range(many)]
    made = model.generate(documents, target="touch", temperature=temperature, seed=seed)
    values = torch.stack([m.value[0] for m in made]).view(len(shown), many, -1)
    ends = values[..., -8:].mean(-1)  # [N, S]
    wanted = torch.tensor([END[v.warmth] for v in shown])[:, None]  # type: ignore[index]
    share = (ends / wanted > 0.5).float().mean(1)
    return {"share": share.tolist(), "ends": ends.tolist(), "curves": values}


@torch.no_grad()
def yes(model: Any, shown: list[View], num: int, real: bool, question: str = "hot") -> list[float]:
    """Probability of "yes" against "no", computed from their first letters."""
    documents: list[list[Any]] = [[v.picture] for v in shown]
    for document, view in zip(documents, shown):
        document += [{"touch": view.touches[real][:, : num * PATCH]}] if num else []
        document += [QUESTIONS[question], " "]
    letters = model.model.modality("text").table.weight[[ord("y"), ord("n")]]
    scores = code_scores(model, Rollout(model, model.processor(documents)).hidden, letters)
    return scores.softmax(-1)[:, 0].tolist()


def named(model: Any, shown: list[View], num: int) -> list[bool]:
    """Whether the answer to "what is it?" is exactly the name; touch is that of the real thing."""
    documents: list[list[Any]] = [[v.picture] for v in shown]
    if num:
        for document, view in zip(documents, shown):
            document.append({"touch": view.touches[True][:, : num * PATCH]})
    made = model.generate([[*d, QUESTIONS["what"]] for d in documents], target="text", max_latents=28)
    return [m.value.strip().rstrip(".") == v.name for m, v in zip(made, shown)]


def measure(model: Any, sets: dict[str, list[View]], noise: float, seed: int) -> dict[str, Any]:
    """All measurements of one model, by view."""
    banks = {num: Bank(model, num, noise) for num in TOUCHED if num < 8}
    found: dict[str, Any] = {
        "told_apart": {str(num): bank.told_apart() for num, bank in banks.items()},
        "readout_explains": explained(model, banks),
    }
    for name, shown in sets.items():
        warm = [v for v in shown if v.warmth != "room"]
        own: dict[str, Any] = {"side": {}, "yes": {}, "named": {}}
        for num, bank in banks.items():
            for real in (True, False) if num else (True,):
                own["side"][f"{num}_{real}"] = side(model, warm, bank, num, real, seed)
        for num in TOUCHED:
            for real in (True, False) if num else (True,):
                own["yes"][f"{num}_{real}"] = yes(model, shown, num, real)
        for num in (0, 8):
            own["named"][str(num)] = named(model, shown, num)
        drawn = curves(model, warm, 20, seed)
        own["curves"] = {"share": drawn["share"], "ends": drawn["ends"]}
        found[name] = own
    return found


def nearest_name(shown: list[View], known: list[View], size: int = 16) -> list[bool]:
    """Whether the known picture nearest in raw pixels has the same name."""

    def flat(many: list[View]) -> Tensor:
        small = [F.interpolate(v.picture[None].float(), (size, size), mode="area").flatten() for v in many]
        return torch.stack(small)

    near = torch.cdist(flat(shown), flat(known)).argmin(1).tolist()
    return [known[i].name == v.name for i, v in zip(near, shown)]


# -- from views to statistics


def stats(each: np.ndarray) -> dict[str, float]:
    """From each [seeds, items]: mean, interval over items of the means over seeds, sd over seeds."""
    found = mean_metric("", each.mean(0))
    sd = float(each.mean(1).std(ddof=1)) if len(each) > 1 else 0.0
    return {"mean": found.value, "low": float(found.low or 0), "high": float(found.high or 0), "sd": sd}


def table(runs: list[dict[str, Any]], *path: str) -> np.ndarray:
    """[seeds, items]: the values of one measure."""
    found = []
    for run in runs:
        value: Any = run
        for name in path:
            value = value[name]
        found.append(value)
    return np.array(found, float)


def by_rate(each: np.ndarray, rates: np.ndarray) -> dict[str, Any]:
    return {f"{rate:g}": stats(each[:, rates == rate]) for rate in sorted(set(rates.tolist()))}


def cross_entropy(p: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Expected cross-entropy in nats of probability p for an event with the given rate."""
    p = p.clip(1e-6, 1 - 1e-6)
    return -(rate * np.log(p) + (1 - rate) * np.log(1 - p))


def summarise(runs: list[dict[str, Any]], name: str, shown: list[View]) -> dict[str, Any]:
    """Results of one variant on one set of pictures."""
    warm = np.array([v.rate for v in shown if v.warmth != "room"])
    hot = np.array([v.hot_rate for v in shown])
    is_hot = np.array([v.warmth == "hot" for v in shown])
    side_0 = runs[0][name]["side"]["0_True"]
    weight = table(runs, name, "side", "0_True", "weight")
    asked = table(runs, name, "yes", "0_True")
    found: dict[str, Any] = {
        "pictures": len(shown),
        "weight": by_rate(weight, warm),
        "weight_error": stats(np.abs(weight - warm)),
        "weight_error_of_mean_rate": float(np.abs(warm.mean() - warm).mean()),
        "between": by_rate(table(runs, name, "side", "0_True", "between"), warm),
        "curves": by_rate(table(runs, name, "curves", "share"), warm),
        "yes": by_rate(asked, hot),
        "yes_nats": stats(cross_entropy(asked, hot)),
        "yes_nats_at_best": float(cross_entropy(hot, hot).mean()),
        "yes_nats_of_mean_rate": float(cross_entropy(np.full_like(hot, hot.mean()), hot).mean()),
        "named": {num: stats(table(runs, name, "named", num)) for num in ("0", "8")},
    }
    if "sampled" in side_0:
        sampled = table(runs, name, "side", "0_True", "sampled")
        found["sampled"] = by_rate(sampled, warm)
        found["sampled_error"] = stats(np.abs(sampled - warm))
        found["sampled_neither"] = stats(table(runs, name, "side", "0_True", "sampled_neither"))
    settled: dict[str, Any] = {}
    for num in TOUCHED[1:]:
        own: dict[str, Any] = {}
        for real in (True, False):
            key = f"{num}_{real}"
            said = table(runs, name, "yes", key)[:, is_hot]
            own["yes_real" if real else "yes_picture"] = stats(said)
            own["right_real" if real else "right_picture"] = stats((said > 0.5) == real)
            if num < 8:
                own["weight_real" if real else "weight_picture"] = stats(table(runs, name, "side", key, "weight"))
        settled[str(num)] = own
    return {**found, "touched": settled}


# -- figures

BLUE, ORANGE, GREEN, INK, SOFT, LINE = "#0072b2", "#d55e00", "#009e73", "#1b2330", "#5b6675", "#d5dae2"
COLOURS = {"mixture": BLUE, "single": GREEN, "point": ORANGE, "flow": "#cc79a7", "energy": "#56b4e9"}


def dress(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8, color=SOFT)
    axes.set_ylabel(y, fontsize=8, color=SOFT)
    axes.tick_params(labelsize=7.5, colors=SOFT, length=0)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def figure(path: str, models: dict[str, Any], shown: list[View], summary: dict[str, Any]) -> None:
    """Top: curves generated by the mixture and the point prediction for hot things. Bottom: rates and settling."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(9.6, 5.6), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.subplots(2, 3)
    hot = [
        next(v for v in shown if v.warmth == "hot" and v.rate == rate)
        for rate in sorted({v.rate for v in shown} - {0.0})
    ]
    for place, view in zip(axes[0], hot):
        drawn = curves(models["mixture"], [view], 20, 1)["curves"][0]
        for curve in drawn:
            place.plot(20 + 20 * curve.numpy(), color=BLUE, linewidth=0.8, alpha=0.6)
        if "point" in models:
            point = curves(models["point"], [view], 1, 0)["curves"][0, 0]
            place.plot(20 + 20 * point.numpy(), color=ORANGE, linewidth=2, linestyle="--")
        for real in (True, False):
            place.plot(20 + 20 * view.touches[real][0].numpy(), color=INK, linewidth=1, linestyle=":")
        dress(place, f"{view.name}: real {100 * view.rate:.0f} % of the time", "sample", "°C")
        inset = place.inset_axes((0.02, 0.72, 0.16, 0.26))
        inset.imshow(view.picture.permute(1, 2, 0).numpy())
        inset.axis("off")
    pairs = (("weight", "Next touch latent, from the picture alone", "weight on the real side"),
             ("yes", "\"Is it hot?\", from the picture alone", "probability of yes"))  # fmt: skip
    for place, (measure_name, title, label) in zip(axes[1], pairs):
        place.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (3, 2)))
        for variant, colour in [(v, COLOURS[v]) for v in models]:
            own = summary[variant]["known"][measure_name]
            x = np.array([float(rate) for rate in own])
            y = np.array([one["mean"] for one in own.values()])
            low, high = ([one[end] for one in own.values()] for end in ("low", "high"))
            place.vlines(x, low, high, color=colour, alpha=0.6)
            place.plot(x, y, "o-", color=colour, markersize=4, label=variant)
        dress(place, title, "rate at which it is real", label)
        place.legend(fontsize=7.5, frameon=False)
    last = axes[1][2]
    for variant, colour in [(v, COLOURS[v]) for v in models]:
        own = summary[variant]["known"]["touched"]
        for key, style in (("yes_real", "-"), ("yes_picture", "--")):
            last.plot([int(n) for n in own], [one[key]["mean"] for one in own.values()], style, marker="o",
                      markersize=3, color=colour, label=f"{variant}, {key[4:]}")  # fmt: skip
    dress(last, '"Is it hot?" of hot things, after touch', "touch latents (4 samples each)", "probability of yes")
    last.legend(fontsize=6.5, frameon=False)
    sheet.savefig(path, format="png", metadata={"Software": None})


def calibration(model: Any, data: Candle, num: int) -> tuple[Any, dict[str, Any]]:
    """Calibration on held-out views: of all touch latents, and of the first touch latents only."""
    from calibration import calibrate, join, score_positions

    parts: dict[str, list[Any]] = {"all": [], "first": []}
    owners: dict[str, list[int]] = {"all": [], "first": []}
    kind = 2 + model.processor.names.index("touch")
    generator = torch.Generator().manual_seed(0)
    rows = data.model_copy(update={"repeats": 1}).rows("train")
    for seed in range(num):
        documents = [
            data.make(rows[i], "picture touch", 5000 + seed, None, data.num_samples)[0] for i in range(len(rows))
        ]
        inputs = model.processor([d["segments"] for d in documents])
        with torch.no_grad():
            latents = model.embed(inputs)
            density = model.density_head(model.encode(latents).last[:, :-1])
        target, own = latents.z[:, 1:], inputs["kinds"][:, 1:] == kind
        first = own & (inputs["kinds"][:, :-1] == 1)
        for name, mask in (("all", own), ("first", first)):
            parts[name].append(score_positions(density.at(mask), target[mask], generator))
            owners[name] += (torch.arange(len(mask))[:, None].expand_as(mask)[mask] + seed * len(rows)).tolist()
    found = {name: calibrate(join(parts[name]), owners[name]) for name in parts}
    brief = {name: {m.name: m.value for m in one.metrics} for name, one in found.items()}
    return found, brief


@torch.no_grad()
def sampled_calibration(model: Any, data: Candle, num: int) -> dict[str, Any]:
    """Calibration of densities that can only be sampled, over touch latents of new views: expected and actual cosine of
    the mean, and coverage of the 50 and 90 % regions around the mean, estimated from samples."""
    kind = 2 + model.processor.names.index("touch")
    rows = data.model_copy(update={"repeats": 1}).rows("train")
    found: dict[str, list[Tensor]] = {"expected_cosine": [], "cosine": [], "region_50": [], "region_90": []}
    for seed in range(num):
        documents = [
            data.make(rows[i], "picture touch", 5000 + seed, None, data.num_samples)[0] for i in range(len(rows))
        ]
        inputs = model.processor([d["segments"] for d in documents])
        latents = model.embed(inputs)
        own = inputs["kinds"][:, 1:] == kind
        density = model.density_head(model.encode(latents).last[:, :-1][own])
        mean, truth = density.mean(), F.normalize(latents.z[:, 1:][own], dim=-1)
        draws = (density.several(NUM_SAMPLES) * mean[:, None]).sum(-1)
        nearer = ((truth * mean).sum(-1)[:, None] < draws).float().mean(1)  # share of samples nearer than the truth
        found["expected_cosine"].append(density.expected_cosine())
        found["cosine"].append((truth * mean).sum(-1))
        found["region_50"].append((nearer <= 0.5).float())
        found["region_90"].append((nearer <= 0.9).float())
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def trained(variant: str, seed: int, folder: Path, overrides: list[str]) -> Any:
    name = f"{VARIANTS[variant]}_{seed}"
    if not (folder / name / "model").is_dir():
        config = recipes.load(VARIANTS[variant])
        fit(apply_overrides(config, [f"name={name}", f"seed={seed}", f"output_dir={folder}", *overrides]))
    return load_omni(folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", help="Parquet folder with the other drawing style")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--views", type=int, default=2, help="views per thing")
    parser.add_argument("--figure", help="PNG with curves and rates")
    parser.add_argument("--calibration", help="PNG with the calibration plot")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the recipes")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    started = time.monotonic()
    config = apply_overrides(recipes.load("omni_candle"), args.set)
    data: Any = config.data
    sets = {"known": views(data, ["train"], args.views, 10**5)}
    if args.emoji:
        other = data.model_copy(update={"source": args.emoji, "where": {"vendor": "twemoji"}})
        sets["style"] = views(other, ["train"], args.views, 10**5)
    sets["unknown"] = views(data, ["validation", "test"], args.views, 10**5)
    models = {v: [trained(v, seed, args.runs, args.set) for seed in range(args.seeds)] for v in args.variants}
    runs = {v: [measure(model, sets, data.noise, n) for n, model in enumerate(own)] for v, own in models.items()}
    summary = {v: {name: summarise(own, name, shown) for name, shown in sets.items()} for v, own in runs.items()}
    result: dict[str, Any] = {
        "recipe": VARIANTS,
        "settings": args.set,
        "seeds": args.seeds,
        "things": {name: sorted({v.name for v in shown}) for name, shown in sets.items()},
        "told_apart": {v: [run["told_apart"] for run in own] for v, own in runs.items()},
        "readout_explains": {v: [run["readout_explains"] for run in own] for v, own in runs.items()},
        "nearest_pixels_named": {
            name: float(np.mean(nearest_name(shown, views(data, ["train"], 1, 0)))) for name, shown in sets.items()
        },
        "summary": summary,
    }
    if args.calibration:
        from calibration_plot import write_calibration

        result["calibration"] = {}
        for variant in [v for v in ("mixture", "single") if v in models]:
            found, result["calibration"][variant] = calibration(models[variant][0], data, 8)
            if variant == "mixture":
                file = found["all"].save(Path(args.out).with_suffix(".calibration.json"))
                write_calibration(json.loads(file.read_text()), args.calibration)
        for variant in [v for v in ("flow", "energy") if v in models]:
            result["calibration"][variant] = sampled_calibration(models[variant][0], data, 2)
    if args.figure:
        figure(args.figure, {v: own[0] for v, own in models.items()}, sets["known"], summary)
    result["minutes"] = (time.monotonic() - started) / 60
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
