"""Settings of `generate` and `chat` for text and painting, in Python and as options."""

from pydantic import Field

from ..core.config import Config


class Sampling(Config):
    """How text is chosen; the defaults are those of Emu's release.

    Attributes:
        num_beams: beams of the search; 1 is greedy decoding, which can be streamed.
        max_new_tokens: maximum tokens of an answer.
        min_new_tokens: minimum tokens of an answer.
        length_penalty: length penalty of beam search; below 0 favours short answers.
        repetition_penalty: above 1, the model repeats itself less.
        do_sample: sample tokens, with temperature, top-k and top-p; needs 1 beam.
        temperature: sampling temperature; above 1 is more varied.
        top_k: sample from this many most likely tokens; 0: all.
        top_p: sample from the most likely tokens that together have this probability.
        seed: seed of sampled text and images; the same seed gives the same result.
    """

    num_beams: int = Field(5, ge=1, le=1000, json_schema_extra={"option": "--beams"})
    max_new_tokens: int = Field(50, ge=1, le=10**6)
    min_new_tokens: int = Field(0, ge=0, le=10**6)
    length_penalty: float = Field(0.0, ge=-100, le=100)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    do_sample: bool = Field(False, json_schema_extra={"option": "--sample"})
    temperature: float = Field(1.0, ge=1e-4, le=1e4)
    top_k: int = Field(50, ge=0, le=10**9)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**32)


class Painting(Config):
    """How a visual decoder paints.

    Attributes:
        num_inference_steps: denoising steps of an image.
        guidance_scale: classifier-free guidance scale, relative to the empty prompt; off at 1 or less.
        latent_temperature: sampling temperature of image latents, for a model whose regression head is a flow.
        latent_guidance: guidance of image latents, relative to the empty prompt; 1: off.
    """

    num_inference_steps: int = Field(50, ge=1, le=10**6, json_schema_extra={"option": "--steps"})
    guidance_scale: float = Field(7.5, ge=-1000, le=1000, json_schema_extra={"option": "--guidance"})
    latent_temperature: float = Field(1.0, ge=0, le=1e4)
    latent_guidance: float = Field(1.0, ge=0, le=1000)
