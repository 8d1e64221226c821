"""Other ways to learn without labels, on NEPA's backbone, data and budget: nepa_demo with another objective.

For your own images: data.source=path/to/images; for Fashion-MNIST as `fashion_mnist` reads it, copy its data and model.
"""

from ..core.objective import ObjectiveSettings
from ..objectives.contrastive import CpcSettings
from ..objectives.jepa import IjepaSettings, VjepaSettings
from ..objectives.joint_embedding import LeJepaSettings, SimSiamSettings
from ..objectives.mar import MarSettings
from ..objectives.pixels import AimSettings, MaeSettings
from ..objectives.tokens import BeitSettings, IgptBertSettings, IgptSettings
from ..runs import RunConfig
from ..toys.moving_stamps import MovingStamps
from .nepa import nepa_demo

NUM_GROUPS = 9  # of emoji


def aim_demo() -> RunConfig:
    """AIM on the bundled emoji pictures: the pixels of the next patch, under prefix attention."""
    return _demo("aim_demo", AimSettings())


def igpt_demo() -> RunConfig:
    """iGPT on the bundled emoji pictures: the code of the next patch, of a codebook of their patches."""
    return _demo("igpt_demo", IgptSettings())


def igpt_bert_demo() -> RunConfig:
    """iGPT's BERT objective on the bundled emoji pictures: the codes of patches hidden at random."""
    return _demo("igpt_bert_demo", IgptBertSettings())


def beit_demo() -> RunConfig:
    """BEiT on the bundled emoji pictures: the codes of masked blocks of patches."""
    return _demo("beit_demo", BeitSettings())


def mae_demo() -> RunConfig:
    """MAE on the bundled emoji pictures: the pixels of the 75 % of patches that are dropped."""
    return _demo("mae_demo", MaeSettings())


def ijepa_demo() -> RunConfig:
    """I-JEPA on the bundled emoji pictures: a teacher's features of four blocks, from other patches."""
    demo = _demo("ijepa_demo", IjepaSettings())
    data = demo.data.model_copy(update={"crop_scale": (0.3, 1.0), "flip_rate": 0.0})  # as the paper
    train = demo.train.model_copy(update={"ema_decay": None})  # the teacher is the average whose features are used
    return demo.model_copy(update={"data": data, "train": train})


def mar_demo() -> RunConfig:
    """MAR on the bundled emoji pictures: masked patches of 4 px sampled by a flow, by group; it generates images."""
    config = _demo("mar_demo", MarSettings(num_classes=NUM_GROUPS, ema_decay=0.999))
    model = config.model.model_copy(update={"patch_size": 4})
    # Few images per step: each gives four samples of sixty patches, and a small network needs many steps.
    train = config.train.model_copy(update={"batch_size": 32, "max_steps": 3000, "ema_decay": 0.999, "log_steps": 50})
    return config.model_copy(update={"model": model, "train": train})


def vjepa_demo() -> RunConfig:
    """V-JEPA on moving emoji, 8 frames: a teacher's features of hidden parts of a clip; classes: direction of motion.

    For videos of your own: data.source=path/to/videos.
    """
    demo = _demo("vjepa_demo", VjepaSettings())
    model = demo.model.model_copy(
        update={"num_frames": 8, "num_attention_heads": 4}
    )  # positions need 12 numbers a head
    train = demo.train.model_copy(update={"ema_decay": None, "batch_size": 64, "max_steps": 500})
    return demo.model_copy(update={"data": MovingStamps(), "model": model, "train": train})


def cpc_demo() -> RunConfig:
    """CPC on the bundled emoji pictures: which of several patches comes 1, 2 and 3 positions later."""
    return _demo("cpc_demo", CpcSettings())


def simsiam_demo() -> RunConfig:
    """SimSiam on the bundled emoji pictures: two crops predict each other's vector."""
    return _demo("simsiam_demo", SimSiamSettings())


def lejepa_demo() -> RunConfig:
    """LeJEPA on the bundled emoji pictures: four crops agree, and vectors of a batch are Gaussian."""
    base = LeJepaSettings()
    return _demo("lejepa_demo", base.model_copy(update={"crops": base.crops.model_copy(update={"local_size": 16})}))


def _demo(name: str, objective: ObjectiveSettings) -> RunConfig:
    """Data, model, batch and steps of nepa_demo; rates, decay and attention that the objective starts from."""
    demo = nepa_demo()
    model = demo.model.model_copy(update={"is_causal": objective.attends == "causal"})
    changes = {"name": name, "model": model, "objective": objective, "optim": type(objective).defaults}
    return demo.model_copy(update=changes)
