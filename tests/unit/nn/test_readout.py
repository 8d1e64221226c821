"""Latents to pixels: exact if possible, otherwise a projection, and never from later latents."""

import pytest
import torch
from torch import nn

from nextembed.models.nepa import NepaModel
from nextembed.nn.readout import LatentDecoder, PatchInverse, to_image, to_patches


def model(width, channels=3, patch=4, seed=0):
    torch.manual_seed(seed)
    return NepaModel(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=2, image_size=4 * patch, patch_size=patch,
        num_channels=channels,
    ).build()  # fmt: skip


def pixels(channels=3, height=16, width=16, size=2):
    return torch.rand(size, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("width", "channels", "patch"), [(64, 3, 4), (48, 3, 4), (16, 1, 4), (200, 3, 8)])
@pytest.mark.parametrize("shape", [(16, 16), (8, 24)])
def test_true_latents_recover_the_image(width, channels, patch, shape):
    net = model(width, channels, patch)
    images = pixels(channels, *shape)
    inverse = PatchInverse(net.get_input_embeddings(), net.config.patch_shape, channels)
    assert inverse.exact and inverse.rank == channels * patch * patch
    z = net.embed({"pixel_values": images}).z[:, 1:]
    found = inverse(z, (shape[0] // patch, shape[1] // patch))
    assert found.dtype == torch.float32
    assert (found - images).abs().max() < 1e-4


def test_narrow_latents_give_a_projection():
    net = model(8)
    images = pixels()
    inverse = PatchInverse(net.get_input_embeddings(), (4, 4), 3)
    assert not inverse.exact and inverse.rank == 8
    z = net.embed({"pixel_values": images}).z[:, 1:]
    found = inverse(z, (4, 4))
    again = net.embed({"pixel_values": found}).z[:, 1:]
    torch.testing.assert_close(again, z, atol=1e-4, rtol=1e-4)  # it preserves all information in the latents
    assert found.norm() < images.norm() and (found - images).abs().max() > 0.1
    # least squares gives the smallest image with these latents, so the missing part is orthogonal
    assert abs((found * (images - found)).sum()) < 1e-2


def test_cutoff_drops_the_weakest_directions():
    net = model(48)
    inverse = PatchInverse(net.get_input_embeddings(), (4, 4), 3)
    noise = torch.randn(1, 16, 48, generator=torch.Generator().manual_seed(2))
    norms = [inverse(noise + inverse.bias.float(), (4, 4), cutoff).norm().item() for cutoff in (0, 0.1, 0.5)]
    assert norms[0] > norms[1] > norms[2] > 0


def test_a_non_linear_embedding_is_an_error():
    class Squared(nn.Module):
        def forward(self, images):
            return to_patches(images, (4, 4)) ** 2

    with pytest.raises(ValueError, match="not a linear map"):
        PatchInverse(Squared(), (4, 4), 3)


def test_patches_and_image_are_inverse():
    images = pixels(3, 8, 12)
    patches = to_patches(images, (4, 6))
    assert patches.shape == (2, 4, 72)
    torch.testing.assert_close(patches[0, 1], images[0, :, :4, 6:].flatten())
    assert torch.equal(to_image(patches, (2, 2), (4, 6)), images)


@pytest.mark.parametrize("training", [False, True])
def test_decoder_is_causal_and_reads_only_directions(training):
    torch.manual_seed(0)
    decoder = LatentDecoder(16, (4, 4), 3, width=32, num_layers=2, num_heads=2).train(training)
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))
    with torch.set_grad_enabled(training):
        found = decoder(x, (2, 3)).detach()
        changed = x.clone()
        changed[:, 4] += 1
        after = decoder(changed, (2, 3)).detach()
        scaled = decoder(7 * x, (2, 3)).detach()
    assert found.shape == (2, 6, 48) and decoder.image(x, (2, 3)).shape == (2, 3, 8, 12)
    torch.testing.assert_close(after[:, :4], found[:, :4])
    assert (after[:, 4:] - found[:, 4:]).abs().amax((0, 2)).min() > 1e-4
    torch.testing.assert_close(scaled, found, atol=1e-4, rtol=1e-4)
