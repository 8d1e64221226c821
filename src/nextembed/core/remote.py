"""Addresses of files in object stores and on web servers. Secrets are not part of them but stay in the environment."""

import os
import re
from urllib.parse import urlsplit

from ..errors import ConfigError
from .code import tells

REMOTE = re.compile(r"^(s3|gs|gcs|hf|https?)://", re.IGNORECASE)
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def is_remote(name: str) -> bool:
    """Whether a text is a network address: s3://, gs://, hf://, http(s)://."""
    return REMOTE.match(name) is not None


def check_secrets(name: str) -> str:
    """The address, if it contains no secret: it is written into configs, reports and model cards.

    Raises ConfigError, which does not repeat the secret, for a password or a query (`?X-Amz-Signature=...`) in it.
    """
    if not is_remote(name):
        return name
    try:
        parts = urlsplit(VARIABLE.sub("variable", name))
        has_user, query = "@" in parts.netloc, VARIABLE.sub("", urlsplit(name).query or "")
    except ValueError:
        raise ConfigError("data.source: the address is not well-formed") from None
    scheme = parts.scheme
    if has_user and not re.match(r"^[a-z0-9]+://\$\{?\w+\}?@", name, re.IGNORECASE):
        raise ConfigError(
            f"data.source: a user or a password in {scheme}://... would be written into the run folder; put it into an "
            f"environment variable and name that: {scheme}://$MY_LOGIN@host/path"
        )
    if query.strip("?&"):
        raise ConfigError(
            f"data.source: what follows the ? in {scheme}://{parts.netloc}/... may be a secret and would be written "
            f"into the run folder; put it into an environment variable and name that: {scheme}://host/path?$MY_QUERY"
        )
    return name


def check_address(name: str) -> str:
    """`check_secrets`, for a setting. Also raises ConfigError for a variable of the environment that a file asks for
    and that the user did not name for this host."""
    check_secrets(name)
    host = urlsplit(VARIABLE.sub("variable", name)).netloc.rpartition("@")[2].lower() if is_remote(name) else ""
    for variable in VARIABLE.findall(name) if is_remote(name) else ():
        if not tells(variable, host):
            raise ConfigError(
                f"data.source: {host} would be told the environment variable {variable}, which only a file asks for; "
                f"if it may be, set {variable}_HOST={host}"
            )
    return name


def filled_in(name: str) -> str:
    """The address with `$NAME` and `${NAME}` replaced from the environment; it must not be written anywhere.

    Raises ConfigError for a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"data.source: the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return VARIABLE.sub(value, check_secrets(name))


def without_secrets(text: str, name: str) -> str:
    """A message about an address, without values that came from the environment."""
    for found in VARIABLE.finditer(name):
        if secret := os.environ.get(found[1]):
            text = text.replace(secret, found[0])
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1...@", re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", text))
