"""A folder for the Hugging Face hub, and its upload."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ..core.files import check_target, first_line, new_folder, write_json
from ..core.objective import FOLDER
from ..core.saved import read_json
from ..errors import ConfigError, NextEmbedError
from ..objectives.saved import FILES as OBJECTIVE_FILES
from ..objectives.saved import ObjectiveFile
from .card import model_card
from .facts import Facts, gather

FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")


class UploadError(NextEmbedError):
    """The hub did not accept the folder: no token, no permission, or not reachable."""


def write_hub_folder(facts: Facts, target: str | Path, repo_id: str, license: str | None = None) -> Path:
    """Writes the folder for the hub: weights as safetensors, configuration, image processor, README.md, and the
    objective where one was saved with the model. No optimizer state.

    Args:
        facts: of the model, see `facts.gather`.
        target: a new folder.
        repo_id: "user/name" on the hub.
        license: its identifier on the hub; None says "unknown".

    Raises:
        ConfigError: if the target holds something already, or the model is not stored as safetensors.
    """
    target = Path(target)
    _check_repo_id(repo_id)
    check_target(target)
    files = sorted({file for pattern in FILES for file in facts.folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise ConfigError(f"{facts.folder} has no safetensors weights; `nextembed convert` writes them")
    check_objective(facts)
    card = model_card(facts, repo_id, license)
    with new_folder(target) as folder:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        if facts.objective is not None:
            _add_objective(facts.objective, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return target


def _add_objective(objective: Path, folder: Path) -> None:
    """Copies the objective that provides features or generates, and marks it in config.json."""
    (folder / FOLDER).mkdir()
    for name in OBJECTIVE_FILES:
        shutil.copyfile(objective / name, folder / FOLDER / name)
    values = read_json(folder / "config.json")
    write_json(folder / "config.json", values | {"nextembed_objective": True}, indent=2)


def check_objective(facts: Facts) -> None:
    """Raises ConfigError for an objective in a user's own file, which others do not have."""
    if facts.objective is not None and ":" in (name := ObjectiveFile.load(facts.objective).name):
        raise ConfigError(
            f"{facts.folder} needs the objective {name}, whose code cannot be uploaded with it; to share the model "
            f"alone, copy {facts.folder} to another folder and push that"
        )


def push_to_hub(
    model: str | Path | Facts,
    repo_id: str,
    *,
    private: bool = False,
    weights: str | None = None,
    license: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Uploads a model with its card, and returns its address.

    Args:
        model: a run, a checkpoint or a model folder, or facts from `facts.gather`.
        repo_id: "user/name" on the hub.
        private: whether only its owner sees it.
        weights: "raw", "ema" or "best"; None takes the best probe's, else raw ones.
        license: its identifier on the hub; None says "unknown".
        api: None takes one with the stored token.

    Returns:
        The address of the upload.

    Raises:
        ConfigError: for what cannot be uploaded.
        UploadError: one line, if the hub does not take it.
    """
    _check_repo_id(repo_id)
    facts = model if isinstance(model, Facts) else gather(model, weights)
    check_objective(facts)
    if api is None and get_token() is None:
        raise UploadError("no Hugging Face token: run `hf auth login`, or set HF_TOKEN")
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_hub_folder(facts, Path(scratch) / "model", repo_id, license)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
            message = "Model and card, by nextembed"
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), repo_type="model", commit_message=message)
        except Exception as err:
            raise UploadError(_reason(err, repo_id)) from err
    return f"https://huggingface.co/{repo_id}"


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ConfigError(f"'{repo_id}' is not a repository name; write USER/NAME, e.g. me/nepa-small") from None


def _reason(err: Exception, repo_id: str) -> str:
    """One line that says what to do."""
    if isinstance(err, LocalTokenNotFoundError):
        return "no Hugging Face token: run `hf auth login`, or set HF_TOKEN"
    if isinstance(err, HfHubHTTPError):
        status = err.response.status_code
        if status == 401:
            return "the hub does not accept the token: run `hf auth login` again"
        if status == 403:
            return f"the token may not write to {repo_id}: it needs the 'write' role, and the name has to be yours"
        return f"the hub refused {repo_id}: {first_line(err)}"
    kinds = {kind.__name__ for kind in type(err).__mro__}  # errors of the hub's HTTP library
    if isinstance(err, (OfflineModeIsEnabled, OSError)) or kinds & {"TransportError", "RequestError"}:
        return f"huggingface.co cannot be reached ({first_line(err)}); --dry-run FOLDER writes what would be uploaded"
    return f"the upload failed: {type(err).__name__}: {first_line(err)}"
