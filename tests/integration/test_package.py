"""The built package: its contents, and that it works without a clone."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = ("__pycache__", ".pyc")


def run(*words: object, cwd: Path, **env: str) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from a copy of the repository."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("build")
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE")]
    files += [file for file in (ROOT / "src").rglob("*") if file.is_file() and "egg-info" not in str(file)]
    for file in files:
        if not any(part in str(file) for part in NOT_SHIPPED):
            copy = folder / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and its commands, separate from this clone."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def test_every_file_of_the_package_is_in_wheel_and_archive(built: Path) -> None:
    ours = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src").rglob("*")
        if file.is_file() and not any(part in str(file) for part in (*NOT_SHIPPED, "egg-info"))
    }
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as one:
        assert {name for name in one.namelist() if ".dist-info/" not in name} == ours
        (metadata,) = [name for name in one.namelist() if name.endswith("METADATA")]
        assert "Typing :: Typed" in one.read(metadata).decode() and "nextembed/py.typed" in ours
        assert [name for name in one.namelist() if name.endswith("wordnet-copyright.txt")]
    with tarfile.open(archive) as two:
        assert ours <= {name.partition("/src/")[2] for name in two.getnames()}


def test_commands_recipes_and_sample_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command, here = installed / "bin" / "nextembed", {"PYTHONPATH": str(installed)}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run(command, "--version", cwd=tmp_path, **here) == f"nextembed {version}\n"
    assert "nepa_demo" in run(command, "recipes", cwd=tmp_path, **here)
    where = run(sys.executable, "-c", "import nextembed; print(nextembed.__file__)", cwd=tmp_path, **here)
    assert Path(where.strip()).is_relative_to(installed)
    words = ["train", "nepa_demo_tiny", "name=first", "probe.enabled=false", "data.num_workers=0"]
    assert "runs/first/report.html" in run(command, *words, cwd=tmp_path, **here)
    assert (tmp_path / "runs/first/model/model.safetensors").is_file()


def test_extras_are_consistent_and_cover_those_in_messages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for own in extras.values():
        for needed in own:
            if needed.startswith("nextembed["):
                assert set(needed[10:-1].split(",")) <= set(extras)
    asked = {
        name
        for file in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"nextembed\[(\w+)\]", file.read_text(encoding="utf-8"))
    }
    assert asked and asked <= set(extras)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_text_refers_to_an_unpublished_package() -> None:
    """Until the package is published, the documentation must not say `pip install nextembed`."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *(ROOT / "src").rglob("*.py")]
    assert not [page.name for page in pages if "pip install nextembed" in page.read_text(encoding="utf-8")]
