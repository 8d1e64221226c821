"""Curves of one or several runs, and differences between their settings."""

from nextembed.studio.curves import curves, differences

HISTORY = [{"step": step, "loss": 2.0 - step, "cos_next": 0.1 * step, "cos_current": 0.2} for step in (1, 2, 3)]


def test_one_run_has_a_colour_per_metric() -> None:
    loss, cosine = curves({"mine": HISTORY})
    assert loss["title"] == "Loss" and loss["traces"][0]["y"] == [1.0, 0.0, -1.0]
    assert loss["ends"][0] < 1 and loss["ends"][1] > 3 and loss["limits"][0] < -1 < 1 < loss["limits"][1]
    assert [(trace["name"], trace["colour"], trace["dash"]) for trace in cosine["traces"]] == [
        ("next", 0, "solid"),
        ("current", 1, "dash"),
    ]


def test_several_runs_have_a_colour_per_run() -> None:
    loss, cosine = curves({"one": HISTORY, "other": HISTORY[:2]})
    assert [(trace["name"], trace["colour"]) for trace in loss["traces"]] == [("one", 0), ("other", 1)]
    assert [trace["name"] for trace in cosine["traces"]] == [
        "one, next",
        "one, current",
        "other, next",
        "other, current",
    ]
    assert loss["ends"] == cosine["ends"]


def test_without_logs_there_is_no_chart() -> None:
    assert curves({}) == [] and curves({"mine": []}) == []


def test_differences_are_dotted_names() -> None:
    one = {"seed": 0, "train": {"max_steps": 10, "device": "cpu"}, "data": {"source": "emoji"}}
    other = {"seed": 0, "train": {"max_steps": 20, "device": "cpu"}, "data": {}}
    assert differences({"a": one, "b": other}) == [
        ("train.max_steps", ["10", "20"]),
        ("data.source", ["emoji", "-"]),
        ("data", ["-", "{}"]),
    ]
    assert differences({"a": one, "b": one}) == []
