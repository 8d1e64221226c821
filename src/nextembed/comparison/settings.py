"""What is compared, and how much each may cost."""

from pydantic import Field, model_validator

from ..core.config import Config
from ..core.sizes import MAX_NUMBER

DEFAULT_MINUTES = 10.0


class CompareSettings(Config):
    """How much each objective may train, how often, and what is measured afterwards.

    minutes | images_seen | flops: the budget of each run, at most one of them; 10 minutes where none is given. On a CPU
    minutes are counted as CPU time of the training process and its data workers (minutes x threads), so that a busy
    machine gives the same result; on an accelerator as wall-clock time. Probes, checkpoints and starting are not
    counted.
    """

    minutes: float | None = Field(
        None, gt=0, le=1e6, description="Minutes of training for each run: on a CPU as CPU time (x threads); 10."
    )
    images_seen: int | None = Field(None, ge=1, le=10**15, description="A budget in images, in place of minutes.")
    flops: float | None = Field(None, gt=0, le=1e40, description="A budget in FLOPs, in place of minutes.")
    seeds: int = Field(
        3, ge=1, le=1000, description="How many runs of each objective; the table has mean and standard deviation."
    )
    tune: int = Field(
        0,
        ge=0,
        le=9,
        description="How many settings each objective tries on validation: learning rate, then weight decay.",
    )
    jobs: int = Field(1, ge=0, le=256, description="How many runs side by side, one a GPU; 0: all in this process.")
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads that the runs share; all of the machine if left out."
    )
    finetune_steps: int = Field(
        300, ge=0, le=10**9, description="Steps of fine-tuning on 1 and 10 % of the labels; 0: none."
    )
    num_probe: int | None = Field(
        None, ge=10, le=MAX_NUMBER, description="How many training images the probes see, in place of probe.num_train."
    )

    @model_validator(mode="after")
    def _one_budget(self) -> "CompareSettings":
        if sum(value is not None for value in (self.minutes, self.images_seen, self.flops)) > 1:
            raise ValueError("give one of minutes, images_seen and flops")
        return self

    @property
    def budget_minutes(self) -> float | None:
        """Minutes of each run; None where images or FLOPs are counted."""
        return None if self.images_seen or self.flops else self.minutes or DEFAULT_MINUTES

    def budget_in_words(self, threads: int, on_cpu: bool) -> str:
        """For a table's footnote."""
        if self.images_seen is not None:
            return f"{self.images_seen:,} images"
        if self.flops is not None:
            return f"{self.flops:.3g} FLOPs"
        minutes = f"{self.budget_minutes:g} minutes"
        if not on_cpu:
            return f"{minutes} of wall-clock time"
        return f"{minutes} on {threads} CPU {'thread' if threads == 1 else 'threads'}, counted as CPU time"
