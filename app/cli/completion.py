"""``tuili completion``."""

from __future__ import annotations

import click

from app.cli._common import fail

_PROGRAM = "tuili"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
def verb(shell: str) -> None:
    """Print a script that has a shell complete verbs, options and names of models.

    bash, in ~/.bashrc: eval "$(tuili completion bash)". zsh likewise in ~/.zshrc. fish: tuili completion fish >
    ~/.config/fish/completions/tuili.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        fail(f"no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())
