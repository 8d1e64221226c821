"""The Python that does what a panel shows. Each text runs as it stands; the tests run it."""


def runs_python(run: str) -> str:
    """Of the runs."""
    return f"""\
import nextembed

run = nextembed.open_run({run!r})
print(run.verdict().word, "-", run.verdict().sentence)
curve = [(line["step"], line["loss"]) for line in run.history() if "loss" in line]
best = run.probes().best() if run.probes() else None  # layer, pooling and attention that probed best
page = run.report()                                    # the report, written anew
"""
