"""How text is chosen and pictures are painted: the settings of `generate` and `chat`, in Python and as options."""

from pydantic import Field

from ..core.config import Config


class Sampling(Config):
    """How text is chosen; the defaults are those of Emu's release."""

    num_beams: int = Field(
        5,
        ge=1,
        le=1000,
        description="1 takes the likeliest token each time, and shows text while it is written.",
        json_schema_extra={"option": "--beams"},
    )
    max_new_tokens: int = Field(50, ge=1, le=10**6, description="Of an answer.")
    min_new_tokens: int = Field(0, ge=0, le=10**6, description="Of an answer.")
    length_penalty: float = Field(0.0, ge=-100, le=100, description="Of beams; below 0 is shorter.")
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, description="Above 1 repeats less.")
    do_sample: bool = Field(
        False,
        description="Draw tokens, with temperature, top-k and top-p; needs 1 beam.",
        json_schema_extra={"option": "--sample"},
    )
    temperature: float = Field(1.0, ge=1e-4, le=1e4, description="Above 1 is bolder.")
    top_k: int = Field(50, ge=0, le=10**9, description="Draw among so many; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw among the likeliest with this share.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of drawn tokens and of painting.")


class Painting(Config):
    """How a visual decoder paints."""

    num_inference_steps: int = Field(
        50, ge=1, le=10**6, description="Of painting.", json_schema_extra={"option": "--steps"}
    )
    guidance_scale: float = Field(
        7.5,
        ge=-1000,
        le=1000,
        description="Of painting: away from the empty prompt; off at 1 or less.",
        json_schema_extra={"option": "--guidance"},
    )
