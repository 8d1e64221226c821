"""Reports of objectives that predict no latents: they name the objective and omit sections about predictions."""

import re
from pathlib import Path

import pytest

from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.objectives.jepa import VjepaSettings
from nextembed.objectives.pixels import MaeSettings
from nextembed.report.prediction import KINDS, NEXT_LATENT
from nextembed.run import fit

PREDICTED = {
    "Predictions",
    "Nearest patches to the predictions",
    "Surprise and features",
    "Rollout",
    "Latents as pixels",
}


def page_of(recipe: str, folder: Path) -> str:
    changes = [f"output_dir={folder}", "name=own", "probe.enabled=false"]
    return (fit(apply_overrides(recipes.load(f"{recipe}_tiny"), changes)).dir / "report.html").read_text("utf-8")


def headings(page: str) -> set[str]:
    return set(re.findall(r"<h[23][^>]*>([^<]+)", page))


@pytest.mark.parametrize(
    ("recipe", "kicker"),
    [
        ("simsiam_demo", "Joint embedding of crops (SimSiam) on emoji"),
        ("mae_demo", "Masked autoencoder (MAE) on emoji"),
        ("cpc_demo", "Contrastive prediction (CPC) on emoji"),
    ],
)
def test_other_objectives_have_their_own_pages(recipe: str, kicker: str, tmp_path: Path) -> None:
    page = page_of(recipe, tmp_path)
    assert kicker in page and "Next-embedding pretraining" not in page
    assert {"Training", "Attention maps", "Features"} <= headings(page) and not PREDICTED & headings(page)


def test_next_embedding_shows_its_predictions(tmp_path: Path) -> None:
    page = page_of("nepa_demo", tmp_path)
    assert "Next-embedding pretraining on emoji" in page
    assert {"Predictions", "Surprise and features"} <= headings(page) and "Features" not in headings(page)


def test_a_report_on_video_mentions_clips(tmp_path: Path) -> None:
    page = page_of("vjepa_demo", tmp_path)
    assert "(V-JEPA) on moving_stamps" in page and "training clips" in page and "training images" not in page


def test_every_kind_of_pretraining_has_a_name() -> None:
    from nextembed.core.objective import OBJECTIVES

    others = {
        "emu",
        "alignment",
        "readout",
        "segmentation",
        "classification",
        "visual_decoder",
    }  # these have their own reports
    assert set(OBJECTIVES.classes) - others <= set(KINDS) and set(NEXT_LATENT) <= set(KINDS)


def test_negative_explained_variance_is_described() -> None:
    said = MaeSettings().verdict([{"explained": -0.15}])
    assert (said.word, said.sentence) == (
        "undecided", "Hidden pixels are predicted worse than by the mean of each patch. Train longer."
    )  # fmt: skip
    line = {"explained": -0.3, "changes_explained": -0.1, "target_spread": 0.9, "target_rank": 20.0}
    sentence = VjepaSettings().verdict([line]).sentence
    assert "-" not in sentence and "0.0 % of the variance of the teacher's features" in sentence


@pytest.mark.parametrize("name", ["next", "current", "query"])
def test_frames_have_the_colour_of_their_legend(name: str) -> None:
    from nextembed.report.style import CSS

    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", CSS)
    found = {
        colour
        for places, body in rules
        if re.search(rf"\.(mark|key)\.{name}\b|\.dim \.mark", places)
        for colour in re.findall(r"#[0-9a-f]{6}", body)
    }
    assert len(found) == 1
