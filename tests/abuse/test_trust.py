"""Code runs only if the user gives it in a command, never because a foreign folder or file refers to it."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import nextembed
from nextembed.cli import main
from nextembed.core import yaml_text
from nextembed.core.code import one_command, trusting
from nextembed.core.config import DATA, apply_overrides, from_yaml, to_yaml
from nextembed.errors import CodeRefused, ConfigError, DataError
from nextembed.evaluation.features.parts import METADATA
from nextembed.evaluation.images import feature_space
from nextembed.export.layouts import read_state
from nextembed.inference.prompts import read_prompts
from nextembed.models.emu.visual_decoder import VisualDecoder
from nextembed.models.parts import load_part
from nextembed.runs import RunConfig

SRC = Path(nextembed.__file__).parent
EVIL = """
from pathlib import Path

Path(__file__).with_name("RAN").touch()
import nextembed
from nextembed import recipes
from nextembed.modalities import Image
from nextembed.models.emu.visual_decoder_settings import PixelDecoder


class Data(nextembed.ImageData):
    source: str = "emoji"

class Goal(nextembed.NextEmbeddingSettings): pass
class Net(nextembed.NepaModel): pass
class Painter(PixelDecoder): pass
class Sense(Image): pass

def stage():
    return recipes.load("nepa_demo_tiny")
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No code is allowed, whatever ran before, and every prompt on the terminal is answered with yes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with one_command(), trusting(False):
        yield


@pytest.fixture
def evil(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A separate file for every test, so that none is already imported."""
    file = tmp_path / "foreign" / f"evil_{abs(hash(request.node.name))}.py"
    file.parent.mkdir()
    file.write_text(EVIL)
    return file


def ran(evil: Path) -> bool:
    return evil.with_name("RAN").exists() or str(evil.parent) in sys.path


def small(**changes: Any) -> RunConfig:
    config = apply_overrides(
        nextembed.recipes.load("nepa_demo_tiny"),
        ["output_dir=runs", "train.max_steps=1", "train.probe_steps=null", "data.num_workers=0",
         "probe.num_train=20", "probe.num_validation=10", "probe.num_test=10", "probe.layers=[1]",
         "probe.penalties=[0.1]"],
    )  # fmt: skip
    return config.model_copy(update=changes)


@pytest.fixture
def run(evil: Path) -> Path:
    """A run with a model; its foreign config.yaml refers to data code beside it."""
    folder = evil.parent / "run"
    torch.manual_seed(0)
    config = small()
    config.model.build().save_pretrained(folder / "model")  # type: ignore[attr-defined]
    text = to_yaml(config).replace("kind: images", f"kind: {evil}:Data")
    assert str(evil) in text
    (folder / "config.yaml").write_text(text)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": -0.5}\n')
    (folder / "environment.json").write_text(json.dumps({"command": ["nextembed", "train", f"{evil}:stage"]}))
    return folder


RUNS = [
    "train {run}/config.yaml",
    "train {run} train.max_steps=2",
    "train --resume {run}",
    "report {run}",
    "probe {run}",
    "evaluate {run}",
    "plan {run}",
    "recipes {run}",
    "recipes {run}/config.yaml",
    "compare {run} {tmp}/again",
    "compare {run} --objectives nepa",
    "compare {run}/config.yaml --objectives nepa",
    "plan {run}/config.yaml",
]


@pytest.mark.parametrize("line", RUNS)
def test_a_run_folder_runs_no_code(line: str, run: Path, evil: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(run, tmp_path / "again")
    assert main(line.format(run=run, tmp=tmp_path).split()) == 2
    said = capsys.readouterr().err
    assert not ran(evil)
    assert said.count("\n") == 1 and f"--code {evil}" in said and str(run / "config.yaml") in said


@pytest.mark.parametrize(
    "line",
    ["sample {run}", "sample {run} --nearest -o {tmp}/s.png", "visualize {run}", "shard {run} -o {tmp}/shards",
     "shard {run}/config.yaml -o {tmp}/shards", "evaluate {run} --task samples features={run}", "embed {run} {run}",
     "evaluate {run} --task caption --data {run}", "search {run} a", "doctor", "generate {run} hello", "chat {run}"],
)  # fmt: skip
def test_commands_that_need_no_settings_run_no_code(line: str, run: Path, evil: Path, tmp_path: Path, capsys) -> None:
    code = main(line.format(run=run, tmp=tmp_path).split())
    said = capsys.readouterr().err
    assert not ran(evil) and "unexpected" not in said
    assert code == 0 or said.count("\n") == 1, said


@pytest.mark.parametrize(
    "line",
    ["report {run}", "plan {run}", "recipes {run}", "probe {run}", "train {run} name=again output_dir={tmp}/new"],
)
def test_code_given_by_the_user_runs(line: str, run: Path, evil: Path, tmp_path: Path, capsys: Any) -> None:
    words = line.format(run=run, tmp=tmp_path).split()
    assert main([*words, "--code", str(evil)]) == 0
    assert ran(evil)


def test_permissions_end_with_the_command(run: Path, evil: Path, tmp_path: Path) -> None:
    other = evil.with_name("other_one.py")
    other.write_text(EVIL)
    assert main(["recipes", str(run), f"--code={other}", "--code", str(evil)]) == 0
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(evil), str(other)))
    evil.with_name("RAN").unlink()
    assert main(["recipes", str(run)]) == 2
    assert not evil.with_name("RAN").exists()


def test_reading_the_weights_of_a_run_needs_no_code(run: Path, evil: Path) -> None:
    """These commands need only plain values."""
    assert main(["push", str(run), "me/model", "--dry-run", "card"]) == 0
    assert main(["embed", str(run), "emoji", "--limit", "4", "-o", "f.parquet"]) == 0
    assert main(["visualize", str(run), "emoji", "-o", "seen.png"]) == 0
    assert main(["convert", str(run), "converted"]) == 0
    assert not ran(evil)


@pytest.mark.parametrize(
    "changes",
    [
        "objective: {kind: EVIL:Goal}",
        "model: {kind: EVIL:Net}",
        "data: EVIL:Data",
        "data: {kind: mixture, sources: [{kind: EVIL:Data}]}",
        "objective: {kind: visual_decoder, decoder: {kind: EVIL:Painter}}",
        "model: {kind: omni, modalities: {text: {}, sense: {kind: EVIL:Sense}}}",
        "model: {kind: omni, modalities: {sense: EVIL:Sense}}",
    ],
)
def test_every_slot_of_a_config(changes: str, evil: Path) -> None:
    text = "train: {max_steps: 1}\n" + changes.replace("EVIL", str(evil))
    with pytest.raises(CodeRefused, match=r"sent\.yaml: .* which runs only if you allow it") as err:
        from_yaml(RunConfig, text, "sent.yaml")
    assert not ran(evil) and "\n" not in str(err.value)


@pytest.mark.parametrize("stage", ["EVIL:stage", f"{os.__file__}:abort"])
def test_stages_before_a_run(stage: str, evil: Path, capsys: pytest.CaptureFixture) -> None:
    """Not even functions of already imported files are called."""
    config = small(after=[stage.replace("EVIL", str(evil))])
    Path("config.yaml").write_text(to_yaml(config))
    assert main(["train", "config.yaml"]) == 2
    assert not ran(evil)
    assert "--code" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_metadata_of_features(run: Path, evil: Path, capsys: pytest.CaptureFixture) -> None:
    settings = {"data": {"kind": f"{evil}:Data"}, "layer": 1, "num_layers": 2, "pooling": "mean", "attention": "causal"}
    vectors = pa.FixedSizeListArray.from_arrays(np.random.randn(16).astype(np.float32), 4)
    table = pa.table({"row": [0, 1, 2, 3], "key": list("abcd"), "embedding": vectors})
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(settings)}), "sent.parquet")
    assert main(["search", "sent.parquet", "a"]) == 0
    assert main(["search", "sent.parquet", "a", "-o", "sheet.png"]) == 2
    assert not ran(evil) and not Path("sheet.png").exists()
    assert f"--code {evil}" in capsys.readouterr().err
    assert main(["search", "sent.parquet", "a", "-o", "sheet.png", "--code", str(evil)]) == 0
    assert ran(evil)


def test_a_model_runs_no_code(evil: Path) -> None:
    model = small(model=nextembed.OmniParts(modalities={"image": {"image_size": 8, "patch_size": 4}}, hidden_size=16,
                  num_hidden_layers=1, num_attention_heads=2)).model  # fmt: skip
    model.build().save_pretrained("omni")  # type: ignore[attr-defined]
    values = json.loads(Path("omni/config.json").read_text())
    values["modalities"]["image"]["kind"] = f"{evil}:Sense"
    Path("omni/config.json").write_text(json.dumps(values))
    for line in ("generate omni hello", "embed omni emoji", "probe omni --data emoji"):
        assert main(line.split()) == 2
    assert not ran(evil)


@pytest.mark.parametrize(
    "word",
    ["EVIL:stage", "nepa_demo_tiny data.kind=EVIL:Data", "nepa_demo_tiny data=EVIL:Data",
     "nepa_demo_tiny objective={kind:\N{NO-BREAK SPACE}EVIL:Goal}"],
)  # fmt: skip
def test_typed_settings_may_run_code(word: str, evil: Path) -> None:
    words = [one.replace("\N{NO-BREAK SPACE}", " ") for one in word.replace("EVIL", str(evil)).split(" ")]
    assert main(["recipes", *words]) == 0
    assert ran(evil)


def test_programs(run: Path, evil: Path) -> None:
    """Objects that a program passes are trusted; files that the library reads are not."""
    with pytest.raises(CodeRefused):
        nextembed.fit(resume=run)
    with pytest.raises(CodeRefused):
        DATA.parse({"kind": f"{evil}:Data"})
    assert not ran(evil)
    nextembed.allow_code(evil)
    nextembed.runs.read_run_config(run)
    assert ran(evil)
    other = evil.with_name("given.py")
    other.write_text(EVIL)
    config = RunConfig(train={"max_steps": 1}, data={"kind": f"{other}:Data"})  # type: ignore[arg-type]
    assert config.data.kind == f"{other}:Data"
    assert from_yaml(RunConfig, to_yaml(config)) == config  # already imported: the class is only looked up


@pytest.mark.parametrize("name", ["nowhere.py", "folder.py", "text.txt", "", "x\0.py", "y" * 5000 + ".py"])
def test_code_that_is_not_a_file(name: str, capsys: pytest.CaptureFixture) -> None:
    Path("folder.py").mkdir()
    Path("text.txt").touch()
    assert main(["recipes", "--code", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["recipes", "nepa_demo_tiny", f"data={name}:X"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["recipes", "--code"]) == 2


# -- folders of Hugging Face models


PROCESSOR = {"image_processor_type": "EvilProcessor", "auto_map": {"AutoImageProcessor": "evil.EvilProcessor"}}
AUTO_MAP = {
    name: f"evil.{name}"
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageClassification",
                 "AutoModelForPreTraining", "AutoModelForSemanticSegmentation", "AutoProcessor", "AutoBackbone")
} | {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}  # fmt: skip


def evil_files(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "evil.py").write_text("from pathlib import Path\nPath('RAN').touch()\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("from pathlib import Path\nPath('RAN').touch()\n")
    return folder


@pytest.fixture
def stranger() -> Path:
    """The folder of a model type unknown to transformers."""
    folder = evil_files(Path("stranger"))
    values = {"model_type": "evil", "auto_map": AUTO_MAP, "architectures": ["EvilForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": AUTO_MAP}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Evil", "auto_map": AUTO_MAP}))
    return folder


@pytest.fixture
def ours() -> Path:
    """A complete model of ours with a foreign processor."""
    config = small()
    config.model.build().save_pretrained("ours")  # type: ignore[attr-defined]
    folder = evil_files(Path("ours"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": AUTO_MAP}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.mark.parametrize(
    "line",
    ["convert stranger target", "embed stranger emoji", "export stranger -o model.pt2", "probe stranger --data emoji",
     "evaluate stranger --data emoji", "visualize stranger emoji", "generate stranger hello", "chat stranger",
     "push stranger me/model --dry-run card", "evaluate stranger --task caption --data rows.jsonl",
     "train nepa_demo_tiny model.pretrained=stranger", "train emoji_finetune_tiny model.pretrained=stranger",
     "train emu_emoji_tiny model.vision=stranger", "train emu_emoji_tiny model.language=stranger",
     "train emu_emoji_tiny model.tokenizer=stranger", "train omni_emoji_tiny model.tokenizer=stranger",
     "train omni_emoji_tiny model.nepa=stranger", "plan emoji_finetune_tiny model.pretrained=stranger"],
)  # fmt: skip
def test_an_unknown_model_is_a_one_line_error(line: str, stranger: Path, capsys: pytest.CaptureFixture) -> None:
    Path("rows.jsonl").write_text('{"image": "a.png", "text": "a"}\n')
    Image.new("RGB", (8, 8)).save("a.png")
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "[y/N]" not in said.out + said.err
    assert not Path("RAN").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [("convert ours target", 2), ("export ours -o model.pt2", 2), ("push ours me/model --dry-run card", 2),
     ("embed ours emoji --limit 2", 2), ("visualize ours emoji -o seen.png", 0)],
)  # fmt: skip
def test_an_unknown_processor_is_a_one_line_error(
    line: str, code: int, ours: Path, capsys: pytest.CaptureFixture
) -> None:
    found = main(line.split())
    said = capsys.readouterr()
    assert found == code or "Saved" in said.out, said  # some need no processor
    assert "[y/N]" not in said.out + said.err
    assert found == 0 or ("custom code" in said.err and said.err.count("\n") == 1)
    assert not Path("RAN").exists()


def test_parts_inside_models(stranger: Path) -> None:
    from transformers import AutoBackbone, AutoModelForSemanticSegmentation

    for kind in (AutoBackbone, AutoModelForSemanticSegmentation):
        with pytest.raises(ConfigError, match="custom code"):
            load_part(kind, "stranger", "vision")
    with pytest.raises(ConfigError, match="custom code"):
        feature_space(stranger)
    inside = {"model_type": "dinov2", "auto_map": AUTO_MAP}
    inside["model_type"] = "vit_mae"  # not a backbone
    values = {"model_type": "upernet", "backbone_config": inside, "auto_map": AUTO_MAP}
    (stranger / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        load_part(AutoModelForSemanticSegmentation, "stranger", "vision")
    assert not Path("RAN").exists()


def test_kernels_from_the_hub_are_rejected(stranger: Path) -> None:
    from transformers import AutoModel

    values = {"model_type": "bert", "attn_implementation": "somebody/kernel"}
    (stranger / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="kernel somebody/kernel"):
        load_part(AutoModel, "stranger", "vision")


def test_kernels_of_bitsandbytes_are_not_downloaded(tmp_path: Path) -> None:
    """On some CPUs, importing it (also by peft) downloads and runs a kernel from the hub. This runs in a subprocess,
    because a module is imported only once."""
    pytest.importorskip("bitsandbytes")
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    print('fetched')\n    raise OSError\n")
    text = """
from nextembed.core.quiet import import_bitsandbytes
import_bitsandbytes()
import peft, peft.import_utils
print(peft.import_utils.is_bnb_available(), end="")
import kernels
"""
    path = os.pathsep.join([str(tmp_path), str(SRC.parent)])
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True"), done.stderr[-2000:]
    assert "kernel" not in done.stderr


def test_diffusers_parts(stranger: Path) -> None:
    for part, name in (("unet", "UNet2DConditionModel"), ("scheduler", "DDIMScheduler")):
        folder = evil_files(stranger / part)
        values = {"_class_name": "Evil", "auto_map": {name: "evil.Evil", "AutoModel": "evil.Evil"}}
        for file in ("config.json", "scheduler_config.json"):
            (folder / file).write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        VisualDecoder.from_pretrained(stranger)
    assert not Path("RAN").exists()


def test_a_data_folder_with_a_script(tmp_path: Path) -> None:
    folder = evil_files(Path("pictures"))
    for name in ("pictures.py", "dataset.py", "__init__.py"):
        (folder / name).write_text("from pathlib import Path\nPath('RAN').touch()\n")
    assert main(["train", "nepa_demo_tiny", "data.source=pictures"]) == 2
    assert not Path("RAN").exists()


@pytest.mark.parametrize("piece", ["http://127.0.0.1:9/a.png", {"image": "http://127.0.0.1:9/a.png"}])
def test_prompts_download_nothing(piece: Any) -> None:
    Path("rows.jsonl").write_text(json.dumps({"pieces": [piece]}))
    with pytest.raises(DataError, match=r"line 1: .* files of rows are not downloaded"):
        read_prompts("rows.jsonl")


class Runs:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("RAN"),)


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.ckpt"])
def test_pickles_are_rejected_as_weights(name: str, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": Runs()}, name)
    with pytest.raises(ConfigError, match="not weights"):
        read_state(Path(name))
    assert main(["convert", name, "target"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pickle" in said
    assert not Path("RAN").exists()


# -- the source


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """(file:line, call, called name) for all calls in the package."""
    for file in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(SRC)}:{node.lineno}", node, ast.unparse(node.func)


def given(call: ast.Call, name: str) -> Any:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


# These load no code: our own classes, which load parts through `load_pretrained`; configs; concrete classes of
# diffusers, which are not Auto classes.
SAFE = ("VisualDecoder.", "EmuPipeline.", "super().", "EmuConfig.", "ViTNepaConfig.", "cls.config_class.",
        "type(backbone.config).", "CLIPImageProcessor.", "_scheduler_class(", "scheduler_class(", "type(decoder.",
        "type(self.unet)")  # fmt: skip
DOORS = {"core/pretrained.py": "kind.from_pretrained", "models/emu/visual_decoder.py": "kind.from_pretrained"}


def test_every_load_disables_remote_code() -> None:
    for place, call, name in calls():
        if name.endswith((".from_pretrained", ".from_config")) and not name.startswith(SAFE):
            door = DOORS.get(place.partition(":")[0]) == name
            assert door or given(call, "trust_remote_code") == "False", f"{place}: {name}"


def test_nothing_unpickles_or_evaluates() -> None:
    loads = 0
    for place, call, name in calls():
        assert name not in ("eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.unsafe_load"), place
        if name == "torch.load":
            loads += 1
            assert given(call, "weights_only") == "True", place
        if name == "np.load":
            assert given(call, "allow_pickle") == "False", place
        if name == "yaml.load":
            assert place.startswith("core/yaml_text.py") and ast.unparse(call.args[1]) == "loader", place
        if name in ("spec_from_file_location", "importlib.util.spec_from_file_location"):
            assert place.startswith("core/code.py"), place
    assert loads
    assert all(issubclass(loader, yaml.SafeLoader) for loader in yaml_text._LOADERS)  # `_read` is typed to take these
