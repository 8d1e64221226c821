"""Settings of a comparison: budget, seeds, tuning, fine-tuning."""

from pydantic import Field, model_validator

from ..core.config import Config
from ..core.sizes import MAX_NUMBER

DEFAULT_MINUTES = 10.0


class CompareSettings(Config):
    """How much each objective may train, how often, and what is measured afterwards.

    One budget of each run: minutes, images_seen or flops; 10 minutes where none is given. Probes, checkpoints and
    starting are not counted.

    Attributes:
        minutes: how long each run trains: on a CPU counted as CPU time of the training process and its data workers
            (minutes x threads), so that a busy machine gives the same result; on an accelerator as wall-clock time.
        images_seen: a budget in images, in place of minutes.
        flops: a budget in FLOPs of matrix products, in place of minutes.
        seeds: how many runs of each objective; the table has mean and standard deviation.
        tune: number of settings that each objective tries on validation images: learning rates, and from the fourth on
            weight decay as well.
        jobs: how many runs side by side, one a GPU; 0: all in this process.
        threads: CPU threads that the runs share; all of the machine if left out.
        finetune_steps: steps of fine-tuning on 1 and 10 % of the labels; 0: none.
        num_probe: number of training images that the probes see, in place of probe.num_train.
    """

    minutes: float | None = Field(None, gt=0, le=1e6)
    images_seen: int | None = Field(None, ge=1, le=10**15)
    flops: float | None = Field(None, gt=0, le=1e40)
    seeds: int = Field(3, ge=1, le=1000)
    tune: int = Field(0, ge=0, le=9)
    jobs: int = Field(1, ge=0, le=256)
    threads: int | None = Field(None, ge=1, le=4096)
    finetune_steps: int = Field(300, ge=0, le=10**9)
    num_probe: int | None = Field(None, ge=10, le=MAX_NUMBER)

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
        """The budget of a run as text, for a table's footnote.

        Args:
            threads: CPU threads of each run.
            on_cpu: whether runs train on the CPU, where minutes are CPU minutes.

        Returns:
            For example "5 minutes on 1 CPU thread, counted as CPU time".
        """
        if self.images_seen is not None:
            return f"{self.images_seen:,} images"
        if self.flops is not None:
            return f"{self.flops:.3g} FLOPs"
        minutes = f"{self.budget_minutes:g} minutes"
        if not on_cpu:
            return f"{minutes} of wall-clock time"
        return f"{minutes} on {threads} CPU {'thread' if threads == 1 else 'threads'}, counted as CPU time"
