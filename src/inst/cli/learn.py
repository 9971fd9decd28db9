"""The command `inst learn`, which learns a style file from paintings."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from inst.cli.learning import STATE_ENDING, StyleFiles, files_at_steps, learn_style, state_file_of
from inst.cli.places import Output, check_output, output_option, output_path
from inst.cli.session import SeedOption, Session, with_session
from inst.defaults import defaults_of
from inst.errors import InstError, UsageError
from inst.files.claiming import held
from inst.files.listing import pictures_of

LEARN = defaults_of("inst.learning.loop", "learn")
StyleFileOption = Annotated[Output | None, output_option("Style file to write (.safetensors)", optional=True)]
NoPaintingOption = Annotated[
    bool,
    typer.Option(
        "--no-painting",
        help="Leave the pictures of the paintings out of the style file. Style attention and the tone painting do not "
        "work with such a style.",
    ),
]


@dataclass(kw_only=True)
class LearnOptions:
    """The settings of learning as options; most are the argument of `inst.learn` with the same name."""

    steps: Annotated[
        int, typer.Option("--steps", help="Largest number of learning steps. Learning may stop earlier (--patience).")
    ] = LEARN["steps"]
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = LEARN["lr"]
    batch_size: Annotated[int, typer.Option("--batch-size", help="Noisy pictures in each step.")] = LEARN["batch_size"]
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="Inversion module: attention (default with an image encoder), pooled (as in the paper's text) or "
            "direct (textual inversion, default without an image encoder).",
        ),
    ] = LEARN["variant"]
    layers: Annotated[
        int | None,
        typer.Option("--layers", help="Number of attention layers. By default as in the pretrained module, or 3."),
    ] = LEARN["layers"]
    dropout: Annotated[float, typer.Option("--dropout", help="Dropout rate of every layer; 0 is no dropout.")] = LEARN[
        "dropout"
    ]
    vectors: Annotated[
        int | None,
        typer.Option("--vectors", help="Number of style vectors. By default as in the pretrained module, or 8."),
    ] = LEARN["vectors"]
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Start from random weights, not from the pretrained module.")
    ] = False
    crops: Annotated[
        int, typer.Option("--crops", help="Number of random square crops of the paintings; 1 is the centre crop only.")
    ] = LEARN["crops"]
    validate_every: Annotated[
        int, typer.Option("--validate-every", help="Steps between two validations; 0 is no validation.")
    ] = LEARN["validate_every"]
    patience: Annotated[
        int, typer.Option("--patience", help="Learning stops after this many validations without a better loss.")
    ] = LEARN["patience"]
    no_painting: NoPaintingOption = False
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Preset: paper sets the paper's learning rate, batch size and dropout."),
    ] = None

    def settings(self, context: typer.Context) -> dict[str, Any]:
        """Return the arguments of `inst.learn`, with those of the preset. Raises UsageError if there is no such preset.

        Args:
            context: knows which options the user gave. These override the preset.
        """
        from inst.learning.settings import PRESETS

        settings = {option.name: getattr(self, option.name) for option in fields(self)}
        del settings["preset"]
        settings["pretrained"] = False if settings.pop("scratch") else None
        settings["keep_painting"] = not settings.pop("no_painting")
        if self.preset is None:
            return settings
        if self.preset not in PRESETS:
            raise UsageError(f'The preset "{self.preset}" is unknown', f"use {', '.join(PRESETS)}")
        explicit = {name for name in settings if _is_explicit(context, name)}
        return settings | {name: value for name, value in PRESETS[self.preset].items() if name not in explicit}


@with_session
def learn(
    context: typer.Context,
    session: Session,
    paintings: Annotated[
        list[Path],
        typer.Argument(help="A painting, several paintings of one style, or a folder of them.", show_default=False),
    ],
    options: LearnOptions,
    out: StyleFileOption = None,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every",
            min=0,
            help="Steps between two saved styles (NAME-000100.safetensors); 0 is none. No file of such a name is "
            "overwritten without --overwrite or --resume.",
        ),
    ] = 0,
    preview_every: Annotated[
        int,
        typer.Option(
            "--preview-every",
            min=0,
            help="Steps between two preview pictures (NAME-000100.png); 0 is none. They are overwritten as those of "
            "--save-every.",
        ),
    ] = LEARN["preview_every"],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the interrupted command, or learn on from its finished style with more --steps; needs the "
            "same -o.",
        ),
    ] = False,
    begin: Annotated[
        Path | None,
        typer.Option("--begin", help="Style file to learn on from. Its steps count: --steps must be more."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Begin again, even if an interrupted command could be continued. Its saved styles and previews are "
            "overwritten.",
        ),
    ] = False,
    seed: SeedOption = LEARN["seed"],
) -> None:
    """Learn a style from one painting, or from several paintings of one style."""
    from inst.learning.state import is_state
    from inst.styles.style import check_style_name

    sources = pictures_of(paintings)
    if resume and (out is None or out.is_folder):
        raise UsageError("--resume needs the style file of the interrupted command", "give it with -o")
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite begins again", "give one of them")
    if resume and begin is not None:
        raise UsageError("--resume begins with the style of -o", "leave out --begin or --resume")
    inputs = [*sources, *([begin] if begin else [])]
    check_output(out, inputs, check_style_name)
    settings = options.settings(context) | {"preview_every": preview_every, "seed": seed}
    named = out is not None and not out.is_folder
    with ExitStack() as stack:
        path = stack.enter_context(output_path(out, sources[0].stem, ".safetensors", beside=[STATE_ENDING]))
        state_file = state_file_of(path)
        if named:  # a new name is held already
            stack.enter_context(held(path))
        stack.enter_context(held(state_file))
        # The names of the intermediate files depend on the style's name, which is known only here.
        again = named and (resume or overwrite)
        earlier = files_at_steps(path, options.steps, preview_every, save_every)
        check_output(Output(path, is_folder=False), inputs, check_style_name, earlier, replace=again)
        if state_file.exists() and not is_state(state_file):
            raise InstError(
                f"{state_file} is not the state of an interrupted command and would be overwritten",
                "give another name with -o, or move the file away",
            )
        if not (resume or overwrite) and state_file.exists():
            raise InstError(
                f"{state_file} is the state of an interrupted command, which would be lost",
                "continue it with --resume, give another name with -o, or begin again with --overwrite",
            )
        files = StyleFiles(path, save_every, replace=again)
        learn_style(session, sources, files, settings, resume=resume, begin=begin)


def _is_explicit(context: typer.Context, name: str) -> bool:
    """Return whether the user gave an option, even with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
