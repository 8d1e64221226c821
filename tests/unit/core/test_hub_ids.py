"""A mistyped hub id is reported before torch is imported."""

import subprocess
import sys

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from nextembed.core import hub
from nextembed.core.hub import check_reachable
from nextembed.errors import ConfigError


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception | None]:
    """Answers of the hub by repository: None or an error. Only kept/one is in the download cache."""
    said: dict[str, Exception | None] = {}

    def repo_info(api: HfApi, name: str, *, repo_type: str, timeout: float) -> None:
        assert repo_type in ("model", "dataset") and timeout <= 5
        if (error := said[name]) is not None:
            raise error

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "is_kept", lambda name, kind: name == "kept/one")
    return said


def error(kind: type[Exception]) -> Exception:
    made = kind.__new__(kind)
    Exception.__init__(made, "no")
    return made


def test_a_missing_repository_is_reported_in_one_line(answers: dict[str, Exception | None]) -> None:
    answers["own/misyped"] = error(RepositoryNotFoundError)
    with pytest.raises(ConfigError) as stopped:
        check_reachable("own/misyped", "model.pretrained: no such folder")
    assert str(stopped.value) == (
        "model.pretrained: no such folder: own/misyped (the hub has no model of this name, or it needs a login)"
    )
    with pytest.raises(ConfigError, match="the hub has no dataset of this name"):
        check_reachable("own/misyped", "data.source", "dataset")


@pytest.mark.parametrize("problem", [None, error(GatedRepoError), TimeoutError("slow"), httpx.ConnectError("away")])
def test_existing_gated_and_unanswered_repositories_pass(
    answers: dict[str, Exception | None], problem: Exception | None
) -> None:
    answers["own/model"] = problem
    check_reachable("own/model", "no such model")
    check_reachable("kept/one", "no such model")  # in the cache: the hub is not queried


def test_querying_the_hub_does_not_import_torch() -> None:
    code = (
        "import sys; from huggingface_hub import HfApi; from nextembed.core import hub; "
        "hub.unreachable = lambda: None; "
        "HfApi.repo_info = lambda *given, **named: None; hub.check_reachable('a/b-c-d', 'x'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
