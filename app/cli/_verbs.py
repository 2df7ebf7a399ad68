"""A click group whose commands are the modules of a package, each imported when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cached_property
from typing import Any

import click


class Verbs(click.Group):
    """Finds its commands by itself.

    Each module of the package is a command named as the module, with dashes for underscores, and holds it as ``verb``.
    Modules with a leading underscore hold what verbs share.

    Args:
        package: the package's name.
    """

    def __init__(self, *args: Any, package: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of all verbs, sorted; nothing is imported."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        modules = pkgutil.iter_modules(importlib.import_module(self._package).__path__)
        return sorted(module.name.replace("_", "-") for module in modules if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """A verb by its name; None for a name that is none."""
        if cmd_name not in self._names:
            return None
        verb: click.Command = importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}").verb
        return verb

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that a command line begins with.

        Raises:
            click.UsageError: there is none of that name; names those that are near.
        """
        # click itself compares with the commands that were added to the group: of these there are none.
        if args and not args[0].startswith("-") and args[0] not in self._names and not ctx.resilient_parsing:
            from app.nearest import did_you_mean

            ctx.fail(f"No such command {args[0]!r}{did_you_mean(args[0], self._names)}.")
        return super().resolve_command(ctx, args)
