"""Parts of the page that all panels use, and errors as one line in it."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import ParamSpec, TypeVar

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from ..core.files import first_line
from ..core.run_folder import find_saved
from ..core.sizes import too_large
from ..errors import NextEmbedError
from ..models.loading import model_type
from .folders import Kind
from .shared import Shared
from .working import MODEL

P = ParamSpec("P")
R = TypeVar("R")
AT_ONCE = 16  # simultaneous calls of a handler without a model
FOLLOWED = ("upload", "input", "release")  # events of a value that may change again while the last one is worked on


def fragment(value: str = "") -> gr.HTML:
    """HTML with the styles of the reports; an element with data-send triggers `select` with its name and value."""
    return scripted("nextembed.page(element, props, watch, (name, data) => trigger('select', data))", value)


def charts() -> gr.HTML:
    """Cards of curves; its value is a list of `curves.Drawn`."""
    return scripted("nextembed.charts(element, props, watch)", [], "nx-charts")


def scripted(script: str, value: object, style: str = "") -> gr.HTML:
    """A part of the page that a script draws from its value, which is plain values."""
    return gr.HTML(
        value, html_template='<div class="nx"></div>', js_on_load=script, apply_default_css=False, elem_classes=[style]
    )


def listen(
    event: Callable[..., Dependency],
    function: Callable[..., object],
    inputs: list[Component] | None = None,
    outputs: list[Component] | None = None,
    heavy: bool = False,
    group: str = "",
) -> Dependency:
    """Calls a function at an event; its errors are one line in the page. heavy: it uses a model; one works at a time,
    and the page shows that it does. group: of the others, those that write to the same places are called one after
    another, so that what is shown in the end is the answer to the last event."""
    handler = in_one_line(alone(function) if heavy and not streams(function) else function)
    if heavy:
        followed = vars(event).get("event_name") in FOLLOWED
        return event(
            handler,
            inputs,
            outputs,
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
            trigger_mode="always_last" if followed else "once",
        )
    return event(
        handler,
        inputs,
        outputs,
        concurrency_limit=1 if group else AT_ONCE,
        concurrency_id=group or None,
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="multiple" if takes_event(function) else "always_last",
    )


def takes_event(function: Callable[..., object]) -> bool:
    """Whether a handler reads what was clicked. Each of its events must be handled: of those that came meanwhile,
    gradio would repeat the first one's data."""
    return any(one.annotation is gr.EventData for one in inspect.signature(function).parameters.values())


def streams(function: Callable[..., object]) -> bool:
    """Whether a handler hands its work to `streamed`, which waits by itself."""
    return inspect.isgeneratorfunction(function)


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """A function that waits until no other work uses a model."""

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with MODEL:
            return function(*args, **kwargs)

    return waiting


def stops(button: gr.Button, work: Dependency, so_far: gr.HTML | None = None) -> None:
    """A click on the button ends the work; where nothing runs, nothing happens. so_far: shows how far it is, and is
    emptied."""
    ended = button.click(None, cancels=[work], api_visibility="private")
    if so_far is not None:
        ended.then(lambda: "", None, [so_far], show_progress="hidden", api_visibility="private")


def sent(event: gr.EventData) -> tuple[str, str]:
    """Name and value of what was clicked in a fragment."""
    data = event._data if isinstance(event._data, dict) else {}
    return str(data.get("name", "")), str(data.get("value", ""))


def python(text: str) -> gr.Code:
    """The Python that does the same, to be copied."""
    with gr.Accordion("The same in Python", open=False):
        return gr.Code(text, language="python", interactive=False, show_label=False, buttons=["copy"])


def said(err: Exception) -> str:
    """An error as one line for the page."""
    if isinstance(err, NextEmbedError):
        return " ".join(str(err).split())[:500]
    if isinstance(err, MemoryError) or too_large(err) or type(err).__name__ == "OutOfMemoryError":
        return "too large for this machine's memory"
    return f"unexpected {type(err).__name__}: {first_line(err)[:300]}"


def in_one_line(function: Callable[P, R]) -> Callable[P, R]:
    """A handler whose errors are one line in the page, and no traceback in the terminal."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: P.args, **kwargs: P.kwargs) -> Iterator[object]:
            try:
                yield from function(*args, **kwargs)
            except gr.Error:
                raise
            except Exception as err:
                raise refusal(err) from None

        return generator  # type: ignore[return-value]

    @functools.wraps(function)
    def handler(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as err:
            raise refusal(err) from None

    return handler


def refusal(err: Exception) -> gr.Error:
    """What gradio shows of an error."""
    return gr.Error(escape(said(err)), duration=12, print_exception=False, title="Error")


def empty(text: str) -> str:
    """A placeholder."""
    return f'<div class="empty">{escape(text)}</div>'


def model_choice(shared: Shared, label: str = "Model", kind: Kind = "model", types: Sequence[str] = ()) -> gr.Dropdown:
    """The entries of a kind, refreshed when the list is opened. types: of models that come first."""

    def names() -> list[str]:
        found = shared.folders.look().of(kind)
        return sorted(found, key=lambda name: type_of(found[name]) not in types) if types else list(found)

    first = names()
    box = gr.Dropdown(first, value=first[0] if first else None, label=label, allow_custom_value=True)

    def again(chosen: str | None) -> object:
        now = names()
        if chosen in now:
            return gr.update(choices=now)  # not its value: another may have been chosen meanwhile
        return gr.update(choices=now, value=now[0] if now else None)

    listen(box.focus, again, [box], [box])
    return box


def type_of(place: Path) -> str:
    """The type of a model; "" where that cannot be read."""
    try:
        return str(model_type(find_saved(place).folder()))
    except (NextEmbedError, OSError):
        return ""


def python_of(shared: Shared, box: gr.Dropdown, write: Callable[[str], str], kind: Kind = "model") -> gr.Code:
    """The Python that does the same with what is chosen. write: gives it for a path."""

    def text(chosen: str | None) -> str:
        place = shared.folders.look().of(kind).get(chosen or "")
        return write(str(place) if place is not None else "PATH")

    code = python(text(str(box.value) if box.value else None))
    # One handler for both events, so that the answer to the first cannot overwrite that to the second.
    listen(functools.partial(gr.on, [box.change, shared.page.load]), text, [box], [code])
    return code
