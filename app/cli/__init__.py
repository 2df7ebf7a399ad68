"""The command line. A verb is a module of this package, found by its name: nothing lists them.

``tuili --help`` answers at once: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import click

from app.cli._verbs import Verbs
from app.version import __version__


@click.group(
    cls=Verbs, package=__name__, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__, prog_name="tuili")
def main() -> None:
    """tuili serves language models over HTTP from one box."""
