"""Errors that a type checker must find in a user's program; only mypy reads this file. If an error is no longer found,
the comment beside it is unused, which is an error; so is a valid name that mypy does not know."""

import nextembed
from nextembed import recipes

config = recipes.nepa_demo()
config.train.max_steps = 10
config.train.max_step = 10  # type: ignore[attr-defined]
config.optim.learning_rate = 1e-3
config.optim.learning_rte = 1e-3  # type: ignore[attr-defined]
config.probe.layers = [3]
config.probe.layer = [3]  # type: ignore[attr-defined]

if isinstance(config.data, nextembed.ImageData):
    print(config.data.source)
    print(config.data.soruce)  # type: ignore[attr-defined]
print(config.data.soruce)  # type: ignore[attr-defined]

run = nextembed.fit("nepa_demo", train={"max_steps": 3})
print(run.config.train.max_steps, run.config.seed)
print(run.confg)  # type: ignore[attr-defined]
nextembed.fitt()  # type: ignore[attr-defined]
