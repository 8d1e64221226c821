"""What a type checker finds in a user's program: mypy reads this file, nobody runs it. A typo that it no longer finds
is an error here, as the comment beside it is then unused; so is a right name that it does not know."""

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
