"""The page: its head, its theme, and a tab for each panel."""

from pathlib import Path

import gradio as gr

from .panels import anything, compare, explore, maps, runs, talk
from .shared import Shared
from .ui import listen

HEAD = (
    '<script src="studio/studio.js"></script><link rel="stylesheet" href="studio/page.css">'
    '<link rel="icon" href="data:,">'
)
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


PANELS = {
    "Runs": runs.build,
    "Explore": explore.build,
    "Map and search": maps.build,
    "Compare": compare.build,
    "Talk and paint": talk.build,
    "Any to any": anything.build,
}


def theme() -> gr.themes.Base:
    """Gradio's look in the colours of the reports, with the fonts of the machine: nothing is fetched."""
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=MONO).set(
        body_background_fill="var(--page)",
        body_background_fill_dark="var(--page)",
        body_text_color="var(--ink)",
        body_text_color_dark="var(--ink)",
        block_background_fill="var(--card)",
        block_background_fill_dark="var(--card)",
        block_border_color="var(--line)",
        block_border_color_dark="var(--line)",
        border_color_primary="var(--line)",
        border_color_primary_dark="var(--line)",
        body_text_color_subdued="var(--soft)",
        body_text_color_subdued_dark="var(--soft)",
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_hover="#005f96",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover_dark="#3391c6",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )


def shown(root: Path) -> str:
    """A short name of a folder: relative to the current folder, to the home folder, else its full path."""
    for base, start in ((Path.cwd(), ""), (Path.home(), "~/")):
        if root.is_relative_to(base):
            return start + root.relative_to(base).as_posix()
    return str(root)


def build_page(shared: Shared) -> None:
    """All panels."""
    with shared.page:
        with gr.Row(elem_classes=["nx-top"]):
            where = ", ".join(shown(root) for root in shared.folders.roots)
            gr.Markdown(f"# nextembed studio\n`{where}`", elem_classes=["nx-top-words"])
            unload = gr.Button("Unload models", size="sm", elem_classes=["nx-small"])
            dark = gr.Button("Light / dark", size="sm", elem_classes=["nx-small"])
        with gr.Tabs():
            for name, build in PANELS.items():
                with gr.Tab(name):
                    build(shared)
        dark.click(None, js="() => nextembed.dark()", api_visibility="private")

        def let_go() -> None:
            names = shared.models.unload()
            shared.maps.unload()
            gr.Info(f"Unloaded: {', '.join(names)}" if names else "No model is in memory", duration=4)

        listen(unload.click, let_go)
