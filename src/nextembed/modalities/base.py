"""The contract of modalities: each turns its signal into latents, and values back into a signal."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..core.code import allowed_files, load_class, load_module
from ..errors import ConfigError, unknown


class Patches(NamedTuple):
    """A signal as patches, each of which becomes one latent.

    Attributes:
        values: [N, P], float32, or [N], int64, of tokens, in natural order (raster, time).
        coordinates: [N, 3], float32: time in steps from 0, height and width in [-1, 1]; 0 where there is none.
        shape: what `Modality.signal` needs to reassemble the signal.
    """

    values: Tensor
    coordinates: Tensor
    shape: tuple[int, ...]


class Modality(nn.Module):
    """One kind of signal. D is the width of the model's latents, P the size of a patch.

    Settings are keyword arguments with JSON values; they are kept in the model's configuration. `patches` and `signal`
    use settings only, no parameters and no buffers: they run where data is read, without the model.

        @MODALITIES.register("touch")
        class Touch(Modality):
            def __init__(self, hidden_size, channels=8):
                super().__init__()
                self.value_size = channels
                self.projection = nn.Linear(channels, hidden_size)

            def patches(self, value):          # [channels, T] -> one latent a time step
                return Patches(value.T, in_time(value.shape[1]), (value.shape[1],))

            def signal(self, values, shape):
                return values.T

    Attributes:
        value_size: P; None for tokens.
        std: what values in [-1, 1] were divided by, so that errors can be given in their units.
    """

    value_size: int | None = None
    std: float = 1.0
    projection: nn.Linear

    def patches(self, value: Any) -> Patches:
        """Cuts a signal into patches.

        Args:
            value: the signal, as documents hold it.

        Returns:
            Values, coordinates and shape of the patches.

        Raises:
            ValueError: the value is not such a signal; one line, shown to users.
        """
        raise NotImplementedError

    def embed(self, values: Tensor) -> Tensor:
        """Latents before any mixing.

        Args:
            values: [N, P], or ids [N] of tokens.

        Returns:
            [N, D].
        """
        return self.projection(values)

    def signal(self, values: Tensor, shape: tuple[int, ...]) -> Any:
        """The inverse of `patches`, as far as the values contain the signal.

        Args:
            values: [N, P], or ids [N] of tokens, in natural order.
            shape: as of `Patches`.

        Returns:
            The signal.
        """
        raise NotImplementedError

    def default_shape(self) -> tuple[int, ...] | None:
        """Shape of generated signals, if it is fixed; None if the model decides when they end."""
        return None

    def places(self, shape: tuple[int, ...]) -> Tensor:
        """Coordinates of latents; by default one after the other in time.

        Args:
            shape: grid of the latents.

        Returns:
            [N, 3]: time in steps, height and width in [-1, 1].
        """
        return in_time(shape[0])


def in_time(num: int) -> Tensor:
    """Coordinates of latents that follow each other in time.

    Args:
        num: how many.

    Returns:
        [num, 3], float32.
    """
    places = torch.zeros(num, 3)
    places[:, 0] = torch.arange(num)
    return places


class ModalityRegistry:
    """Modality classes by kind; `my_file.py:MyModality` is the user's own."""

    slot: ClassVar[str] = "model.modalities"

    def __init__(self) -> None:
        self.classes: dict[str, type[Modality]] = {}

    def register(self, kind: str) -> Callable[[type[Modality]], type[Modality]]:
        def add(cls: type[Modality]) -> type[Modality]:
            self.classes[kind] = cls
            return cls

        return add

    def find(self, kind: str) -> type[Modality]:
        """The class of a kind. An unknown kind is looked for in the files that the user allowed, which are executed.

        Args:
            kind: as registered.

        Returns:
            The class.

        Raises:
            ConfigError: there is none; the message names the nearest spelling.
        """
        for file in allowed_files() if kind not in self.classes else ():
            self._register_all(load_module(file))
        if kind not in self.classes:
            hint = " If it is your own, import its file first (on the command line: --code FILE.py)."
            raise ConfigError(unknown(f"{self.slot}: kind", kind, self.classes) + hint)
        return self.classes[kind]

    def settle(self, name: str, settings: Mapping[str, Any] | str | None) -> dict[str, Any]:
        """Settings with a registered kind; `my_file.py:MyModality` is loaded and registered.

        Args:
            name: of the modality in the model.
            settings: a mapping, a kind, or None.

        Returns:
            The settings, with `kind`.

        Raises:
            ConfigError: there is no such kind.
        """
        if not isinstance(settings, Mapping | str | None):
            raise ConfigError(f"{self.slot}.{name}: should be a group of settings, not {settings!r}")
        own = {"kind": settings} if isinstance(settings, str) else dict(settings or {})
        kind = own.setdefault("kind", name)
        if not isinstance(kind, str):
            raise ConfigError(f"{self.slot}.{name}.kind: should be a name, not {kind!r}")
        if ".py:" in kind:
            own["kind"] = self._register(load_class(kind, Modality, f"{self.slot}.{name}"))
        self.find(own["kind"])
        return own

    def _register(self, cls: type[Modality]) -> str:
        """The kind of a user's own class: as registered, else its name."""
        kind = next((k for k, known in self.classes.items() if known is cls), cls.__name__.lower())
        self.classes.setdefault(kind, cls)
        return kind

    def _register_all(self, module: Any) -> None:
        for cls in list(vars(module).values()):
            if isinstance(cls, type) and issubclass(cls, Modality) and cls.__module__ == module.__name__:
                self._register(cls)

    def build(self, name: str, settings: Mapping[str, Any], hidden_size: int) -> Modality:
        """Makes a modality.

        Args:
            name: of the modality in the model.
            settings: with its kind.
            hidden_size: D.

        Returns:
            The module.

        Raises:
            ConfigError: it does not have such settings.
        """
        values = {key: value for key, value in settings.items() if key != "kind"}
        cls = self.find(settings.get("kind", name))
        known = [key for key in inspect.signature(cls.__init__).parameters if key not in ("self", "hidden_size")]
        for key in values:
            if key not in known:
                raise ConfigError(unknown(f"{self.slot}.{name}:", key, known))
        try:
            return cls(hidden_size, **values)
        except (TypeError, ValueError) as err:
            raise ConfigError(f"{self.slot}.{name}: {str(err).splitlines()[0]}") from None

    def without_weights(self, modalities: Mapping[str, Mapping[str, object]]) -> dict[str, Modality]:
        """All modalities, only to make patches and signals.

        Args:
            modalities: settings by name.

        Returns:
            The modalities by name, on the meta device.
        """
        with torch.device("meta"):
            return {name: self.build(name, settings, 8) for name, settings in modalities.items()}


MODALITIES = ModalityRegistry()
