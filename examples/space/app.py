"""A demo of hf_lam in the browser: maps with and without a mask, views within a budget, and a check of a repository.

    pip install "hf-lam[demo]"
    python examples/space/app.py

and open http://127.0.0.1:7860. README.md says how to run it as a Space, and docs/space.md what it shows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import transformers
from bundled import BUNDLED, EXAMPLE_TEXT, example_sound
from maps import draw_maps, figures
from repositories import check_repository
from shelf import MOST_LETTERS, Loaded, Shelf, ask, check_source, is_loopback, needs_code
from transformers import HfArgumentParser
from view_budget import CALIBRATED, compare_views, list_segments, list_views

from hf_lam.cli.common import exit_code_of, one_line

OTHER = "other"
FIRST_MODEL = "sentences"
MOST_UPLOADED = "5mb"
MOST_WAITING = 20
SECONDS_KEPT = 3600

INTRODUCTION = """# hf_lam
Attention mechanisms for transformers encoders: learnable masks (LAM), attention views (LoCoMT), synthesised attention
(STT). Choose a model, give it an input, and see what a mechanism does to its attention.
[Documentation](https://hf-lam.github.io/hf-lam/)"""
CSS = """
figure.map { margin: 0 0 1.5rem 0; }
figure.map img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figure.map figcaption { font-size: 0.85rem; opacity: 0.8; margin-top: 0.3rem; max-width: 60rem; }
.report { overflow-x: auto; }
.report table { width: auto; }
"""


@dataclass
class AppArguments:
    """Options of the app."""

    model_dir: str | None = field(
        default=None, metadata={"help": "A folder, or the id of a repository on the Hub, to begin with."}
    )
    # A Space says where its proxy looks for the app.
    host: str = field(
        default_factory=lambda: os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        metadata={"help": "The address to listen on. On one that others reach, no folder and no code can be chosen."},
    )
    port: int = field(default=7860, metadata={"help": "The port to listen on."})
    cache: str | None = field(
        default=None, metadata={"help": "Where the bundled models stay. Default: a temporary folder."}
    )


@dataclass(frozen=True)
class Choice:
    """The model of one visitor.

    checked: the source whose check was shown last, which is the only one that may be trusted.
    """

    source: str
    trust: bool = False
    checked: str = ""


def telling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show what is wrong as a message of the page; what is a fault of the app is in its log alone."""

    @wraps(function)
    def told(*values: Any) -> Any:
        try:
            return function(*values)
        except Exception as error:
            if exit_code_of(error) is None:
                raise
            raise gr.Error(one_line(error), print_exception=False) from error

    return told


class App:
    """What the page does.

    Args:
        shelf: the models.
        is_own_machine: whether nobody else reaches the app. Others may neither choose folders nor run code.
        first: the model to begin with.
    """

    def __init__(self, shelf: Shelf, is_own_machine: bool, first: str = FIRST_MODEL) -> None:
        self.shelf = shelf
        self.is_own_machine = is_own_machine
        self.first = first

    # --- what the page calls -----------------------------------------------------------------------------------------

    def choose(self, name: str) -> tuple[Any, ...]:
        """A model of the list: the choice, and what the page shows for it."""
        if name == OTHER:
            return Choice(""), *self._shown(None)
        return Choice(name), *self._shown(self.shelf.take(name))

    def check(self, source: str) -> tuple[Any, ...]:
        """The check of another model; it is loaded where that runs none of its code."""
        source = check_source(source, self.is_own_machine)
        report = check_repository(source)
        if not needs_code(source):
            loaded = self.shelf.take(source)
            said = f"{report}<p>Loaded: none of the code in it ran.</p>"
            return Choice(source, checked=source), said, gr.update(visible=False, value=False), *self._shown(loaded)
        said = f"{report}<p>It needs code of its own, which was not run.</p>"
        box = gr.update(visible=self.is_own_machine, value=False)
        return Choice("", checked=source), said, box, *self._shown(None)

    def trust(self, is_ticked: bool, choice: Choice) -> tuple[Any, ...]:
        """Load the model whose check is shown, with its code."""
        if not is_ticked:
            return Choice("", checked=choice.checked), *self._shown(None)
        if not (self.is_own_machine and choice.checked):
            raise ValueError("Code of a model runs only on your own machine, and after its check was shown.")
        loaded = self.shelf.take(choice.checked, trust=True)
        return Choice(choice.checked, trust=True, checked=choice.checked), *self._shown(loaded)

    def draw(self, choice: Choice, *values: Any) -> tuple[Any, str]:
        """The labels and the maps of one input."""
        loaded, sample = self._read(choice, values)
        scores = ask(loaded.model, sample.inputs).scores
        return gr.update(value=scores or None, visible=bool(scores)), draw_maps(loaded, sample)

    def compare(self, choice: Choice, segments: str, views: str, percent: float, *values: Any) -> tuple[str, str]:
        """What other views cost, and what they change."""
        loaded, sample = self._read(choice, values)
        try:
            found = compare_views(loaded, sample, segments, views, percent / 100)
        except ValueError as error:
            # A slider passes many values that no views meet: the page says so in its place, without a shout.
            gr.Warning(str(error))
            return "", ""
        return "".join(table.to_html() for table in found.tables()), figures(found.pictures())

    def list_views(self, choice: Choice, segments: str) -> Any:
        """The views to choose from, of other segments."""
        return gr.update(choices=list_views(self._loaded(choice), segments), value=CALIBRATED)

    def verify(self, source: str) -> str:
        """The check alone."""
        return check_repository(check_source(source, self.is_own_machine))

    def _loaded(self, choice: Choice) -> Loaded:
        if not choice.source:
            raise ValueError("There is no model yet: choose one of the list, or check a folder or repository.")
        return self.shelf.take(choice.source, choice.trust)

    def _read(self, choice: Choice, values: tuple[Any, ...]) -> tuple[Loaded, Any]:
        """The model, and the sample in that of the inputs that it takes."""
        loaded = self._loaded(choice)
        text, drawing, picture, sound = values
        image = drawing if loaded.takes_drawings else picture
        sample = loaded.prepare({"text": text, "image": image, "audio": sound}[loaded.kind])
        for note in sample.notes:
            gr.Warning(note)
        return loaded, sample

    def _shown(self, loaded: Loaded | None) -> tuple[Any, ...]:
        """What the page shows for a model: which of the four inputs, and the choices of segments and views."""
        kind = None if loaded is None else loaded.kind
        takes_drawings = loaded is not None and loaded.takes_drawings
        inputs = (kind == "text", takes_drawings, kind == "image" and not takes_drawings, kind == "audio")
        segments = [] if loaded is None else list_segments(loaded)
        first = segments[0] if segments else None
        views = [] if loaded is None or first is None else list_views(loaded, first)
        return (
            *(gr.update(visible=is_shown) for is_shown in inputs),
            gr.update(choices=segments, value=first),
            gr.update(choices=views, value=CALIBRATED if views else None),
        )

    # --- the page ----------------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        """The page."""
        loaded = self.shelf.take(self.first)
        is_bundled = self.first in BUNDLED
        *shown, segments_shown, views_shown = self._shown(loaded)
        text_shown, drawing_shown, picture_shown, sound_shown = (update["visible"] for update in shown)
        listed = [*((bundled.title, name) for name, bundled in BUNDLED.items()), ("Another model …", OTHER)]
        with gr.Blocks(title="hf_lam", analytics_enabled=False, delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
            gr.Markdown(INTRODUCTION)
            choice = gr.State(Choice(self.first))
            model = gr.Dropdown(listed, value=self.first if is_bundled else OTHER, label="Model", elem_id="model")
            with gr.Group(visible=not is_bundled) as other:
                what = "A folder, or the id of a repository on the Hub" if self.is_own_machine else "A repository"
                source = gr.Textbox(
                    value="" if is_bundled else self.first, label=what, placeholder="user/model", elem_id="source"
                )
                load = gr.Button("Check, and load", elem_id="load")
                report = gr.HTML(elem_classes="report")
                trust = gr.Checkbox(label="Run the code of this model: I trust it", visible=False, elem_id="trust")
            text = gr.Textbox(
                value=EXAMPLE_TEXT, label="Sentence", max_length=MOST_LETTERS, visible=text_shown, elem_id="text"
            )
            drawing = gr.Sketchpad(
                label="Draw a digit",
                type="pil",
                layers=False,
                transforms=(),
                canvas_size=(280, 280),
                brush=gr.Brush(default_size=24, colors=["#000000"], color_mode="fixed"),
                visible=drawing_shown,
                elem_id="drawing",
            )
            picture = gr.Image(label="Picture", type="pil", sources=["upload", "clipboard"], visible=picture_shown)
            sound = gr.Audio(
                value=str(example_sound(self.shelf.cache_folder)),
                label="Sound",
                type="filepath",
                visible=sound_shown,
                elem_id="sound",
            )
            values = [text, drawing, picture, sound]
            with gr.Tab("Maps"):
                draw = gr.Button("Draw the maps", variant="primary", elem_id="draw")
                scores = gr.Label(label="What the model says", num_top_classes=3, visible=False)
                maps = gr.HTML(elem_id="maps")
            with gr.Tab("Views and budget"):
                gr.Markdown(
                    "Cut the tokens into segments, and let every head see some of them. Nothing is trained here, so "
                    "sparse views cost quality that training would win back."
                )
                with gr.Row():
                    segments = gr.Dropdown(
                        segments_shown["choices"],
                        value=segments_shown["value"],
                        label="Segments",
                        min_width=300,
                        elem_id="segments",
                    )
                    views = gr.Dropdown(
                        views_shown["choices"],
                        value=CALIBRATED,
                        label="Views (or type some: self + a>b)",
                        allow_custom_value=True,
                        min_width=300,
                        elem_id="views",
                    )
                budget = gr.Slider(
                    10,
                    100,
                    value=75,
                    step=5,
                    label="Budget: FLOPs of the attention, % of full attention",
                    elem_id="budget",
                )
                compare = gr.Button("Compare", variant="primary", elem_id="compare")
                comparison = gr.HTML(elem_id="comparison", elem_classes="report")
                patterns = gr.HTML(elem_id="patterns")
            with gr.Tab("Verify"):
                gr.Markdown("What is in a repository, before its code is trusted. None of it runs.")
                checked = gr.Textbox(label=what, placeholder="user/model", elem_id="checked")
                verify = gr.Button("Verify", variant="primary", elem_id="verify")
                findings = gr.HTML(elem_id="findings", elem_classes="report")

            shown_for_model = [*values, segments, views]
            # One request at a time, whatever it is: the models are shared.
            queued: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
            hidden: dict[str, Any] = {**queued, "api_visibility": "private"}
            model.input(lambda name: gr.update(visible=name == OTHER), model, other, api_visibility="private")
            model.input(telling(self.choose), model, [choice, *shown_for_model], api_name="choose", **queued)
            # What was computed is of the model before.
            model.input(
                lambda: (gr.update(visible=False), "", "", ""),
                outputs=[scores, maps, comparison, patterns],
                api_visibility="private",
            )
            of_check = [choice, report, trust, *shown_for_model]
            gr.on([load.click, source.submit], telling(self.check), source, of_check, api_name="check", **queued)
            trust.input(telling(self.trust), [trust, choice], [choice, *shown_for_model], api_name="trust", **queued)
            of_draw = {"inputs": [choice, *values], "outputs": [scores, maps], **queued}
            gr.on([draw.click, text.submit], telling(self.draw), api_name="draw", **of_draw)
            segments.input(telling(self.list_views), [choice, segments], views, **hidden)
            gr.on(
                [compare.click, budget.change, views.input],
                telling(self.compare),
                [choice, segments, views, budget, *values],
                [comparison, patterns],
                # While one is computed, of further values of the slider only the last counts.
                trigger_mode="always_last",
                api_name="compare",
                **queued,
            )
            gr.on([verify.click, checked.submit], telling(self.verify), checked, findings, api_name="verify", **queued)
            page.queue(max_size=MOST_WAITING)
        return page


def make_app(arguments: AppArguments, folder: Path) -> App:
    """The app, with its first model loaded.

    Args:
        arguments: the options.
        folder: for the bundled models, unless the options name one.

    Raises:
        LoadingError: if the repository of the first model cannot be read.
        ValueError: if the first model cannot be loaded without code of its own.
    """
    # On a Space, others reach the app through a proxy, whatever address it listens on.
    is_own_machine = is_loopback(arguments.host) and "SPACE_ID" not in os.environ
    cache = folder if arguments.cache is None else Path(arguments.cache)
    cache.mkdir(parents=True, exist_ok=True)
    return App(Shelf(cache), is_own_machine, arguments.model_dir or FIRST_MODEL)


def main(given: list[str] | None = None) -> None:
    kinds: Any = (AppArguments,)
    (arguments,) = HfArgumentParser(kinds, description=__doc__, allow_abbrev=False).parse_args_into_dataclasses(given)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="hf-lam-space-") as folder:
        # What visitors upload goes with the rest.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(folder, "uploads")))
        page = make_app(arguments, Path(folder, "models")).build()
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            max_file_size=MOST_UPLOADED,
            footer_links=["api", "gradio"],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
        )


if __name__ == "__main__":
    main()
