"""Several sources of documents, mixed by weight."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from ..core.config import DATA, Part
from ..core.types import Role
from ..errors import ConfigError
from .documents import DocumentPart, RowSource
from .found import Found


def _document_source(value: object) -> Part:
    part = DATA.parse(value)
    if not isinstance(part, DocumentPart) or isinstance(part, Mixture):
        raise ValueError(f"a mixture needs sources of documents; '{part.kind}' has none")
    return part


@DATA.register("mixture")
class Mixture(DocumentPart):
    """Documents drawn from several sources.

    Attributes:
        sources: settings of each, with its `kind`.
        weights: relative frequency of documents (not tokens) from each source; null: equal. Each source has its own
            epochs, so a small one with a large weight repeats more often. The order of sources depends on the seed
            alone. Settings of packing, workers and max_skipped_rate are those of the mixture, not of `sources`.
    """

    sources: list[Annotated[SerializeAsAny[Part], BeforeValidator(_document_source)]] = Field(min_length=1)
    weights: list[Annotated[float, Field(gt=0, le=1e9)]] | None = None

    @model_validator(mode="after")
    def _as_many_weights(self) -> "Mixture":
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(f"{len(self.weights)} weights for {len(self.sources)} sources")
        return self

    def named(self) -> str:
        """ "a mixture of stamps, stamps_speech"."""
        return f"a mixture of {', '.join(str(part.model_dump().get('source') or part.kind) for part in self.sources)}"

    def source_weights(self) -> list[float]:
        return self.weights or [1.0] * len(self.sources)

    def left_out(self, split: Role) -> dict[str, str]:
        return self._of_all(lambda part: part.left_out(split))

    def unused(self, split: Role) -> dict[str, str]:
        return self._of_all(lambda part: part.unused(split))

    def around(self) -> Found:
        notes: list[str] = []
        for number, part in enumerate(self.parts()):
            found = replace(part.around(), split="", used=None, splits=())
            notes += [f"source {number}: {line}" for line in found.lines("documents")[1:]]
        return Found("", None, notes=tuple(notes))

    def parts(self) -> list[DocumentPart]:
        return [part for part in self.sources if isinstance(part, DocumentPart)]

    def _of_all(self, reasons: Callable[[DocumentPart], dict[str, str]]) -> dict[str, str]:
        found = ((number, reasons(part)) for number, part in enumerate(self.parts()))
        return {f"{number}/{key}": reason for number, own in found for key, reason in own.items()}

    def row_sources(self, split: Role) -> list[RowSource]:
        found: list[RowSource] = []
        for number, part in enumerate(self.parts()):
            try:
                found += part.row_sources(split)
            except ConfigError as err:
                raise ConfigError(f"data.sources[{number}]: {err}") from None
        return found
