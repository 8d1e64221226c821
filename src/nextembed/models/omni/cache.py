"""A cache of keys and values for generation latent by latent, whose capacity doubles. `DynamicCache` copies everything
at each step, which after a thousand latents takes longer than the step itself.
"""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """A layer of a cache; it returns views of its buffer."""

    _rooms: dict[str, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """All keys and values [B, H, past + T, d], the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = {}
        assert self.keys is not None and self.values is not None
        self.keys = self._behind("keys", self.keys, key_states)
        self.values = self._behind("values", self.values, value_states)
        return self.keys, self.values

    def _behind(self, name: str, held: Tensor, new: Tensor) -> Tensor:
        past = held.shape[-2] if held.ndim == 4 else 0
        end = past + new.shape[-2]
        room = self._rooms.get(name)
        # Repeating, selecting or cropping replaces the views by other tensors; cropped ones still share the buffer.
        if room is None or room.data_ptr() != held.data_ptr() or len(room) != len(new) or end > room.shape[-2]:
            room = new.new_empty(*new.shape[:-2], 2 * end, new.shape[-1])
            if past:
                room[..., :past, :] = held
            self._rooms[name] = room
        room[..., past:end, :] = new
        return room[..., :end, :]


def growing_cache() -> Cache:
    """An empty cache for `encode`. Not for training: it is written to in place."""
    return Cache(layer_class_to_replicate=GrowingLayer)
