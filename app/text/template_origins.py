"""Which control tokens of a rendered chat template are the template's own.

A template sees clients' text as it is, so the rendered prompt alone does not tell who wrote a control token in it. A
second form of the template does: what its own literals and special-token variables spell of control tokens is replaced,
letter for letter, by a character that nobody else writes. Rendered from the same messages it gives the same prompt with
the template's control tokens crossed out; those that still stand were written by a client, at least in part. Literals
that the template looks for in messages (``'</s>' in content``, ``content.split('<think>')``) stay as they are.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from app.errors import RequestError
from app.text.control_tokens import ControlTokens
from app.text.template_sandbox import TemplateEnvironment

ROLES = frozenset({"assistant", "developer", "function", "model", "system", "tool", "user"})
"""Roles of messages. A template may put them into control tokens of its own (``'<|' + role + '|>'``)."""

_TWIN = "_marked_"
_MARKS = range(0x100000, 0x10FFFE)
"""Characters to choose a mark from: plane 16 is for private use, and hardly used."""
_MAKE_CHARACTERS = frozenset({"striptags"})
"""Filters whose result has characters that are not in what they are given."""
_TAKE_OUTPUT = frozenset({"default", "d", "format", "indent", "join"})
"""Filters whose arguments come out in their result."""


class _Form(NamedTuple):
    """The second form of a template, with marks that a client cannot have guessed."""

    mark: str
    template: jinja2.Template
    variables: dict[str, str]


class Origins:
    """Who wrote what in the prompts of one template.

    Args:
        source: Jinja source of a template that compiles.
        variables: special tokens by the name that templates have for them.
    """

    def __init__(
        self, source: str, environment: TemplateEnvironment, control: ControlTokens, variables: Mapping[str, str]
    ) -> None:
        self.control = control
        self._source = source
        self._environment = environment
        self._variables = variables
        tree = environment.parse(source)
        literals = [node.data for node in tree.find_all(nodes.TemplateData)]
        literals += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        self.always_in_doubt = any(map(control.beginning_at_end, literals)) or any(
            node.name in _MAKE_CHARACTERS for node in tree.find_all(nodes.Filter)
        )
        """Whether clients may have a part in a control token even if :meth:`ControlTokens.may_come_from` denies it."""
        self._form = self._compile()

    def breaks(self, prompt: str, roles: Collection[str], render: Callable[..., str]) -> list[int]:
        """Where control tokens must not be read in a prompt, since a client had a part in them.

        Args:
            roles: roles of the messages.
            render: renders a template with the prompt's own variables and those that it is given by name.

        Returns:
            Positions in the prompt, ascending: one inside each such token, none inside the template's own.
        """
        found = list(self.control.find(prompt))
        if not found:
            return []
        form = self._form
        if form.mark in prompt:  # a client guessed it
            form = self._form = self._compile(avoiding=prompt)
        own = prompt if form.mark in prompt else _own(prompt, form, render)
        known = ROLES & {role.lower() for role in roles}
        positions = (_break_between(start, own[start:end], form.mark, known) for start, end in found)
        return sorted({position for position in positions if position is not None})

    def _compile(self, avoiding: str = "") -> _Form:
        taken = set(avoiding)
        mark = secrets.choice([mark for mark in map(chr, _MARKS) if mark not in taken] or [chr(_MARKS[0])])
        tree = self._environment.parse_bounded(self._source)
        crossing = _CrossingOut(self.control, mark)
        variables = crossing.cross_out(tree, self._variables)
        return _Form(mark, self._environment.from_string(tree), variables)


class _CrossingOut:
    """Replaces the control tokens that a template prints by marks, in its syntax tree."""

    def __init__(self, control: ControlTokens, mark: str) -> None:
        self._control = control
        self._mark = mark
        self._twins: set[str] = set()
        self._crossed_out: list[nodes.Tuple] = []

    def cross_out(self, tree: nodes.Template, variables: Mapping[str, str]) -> dict[str, str]:
        """Changes the tree; returns variables that it needs besides those that it had."""
        constants: dict[str, list[nodes.Assign]] = {}
        for node in tree.find_all(nodes.Assign):
            if isinstance(node.target, nodes.Name) and _text_of(node.node) is not None:
                constants.setdefault(node.target.name, []).append(node)
        stores = Counter(node.name for node in tree.find_all(nodes.Name) if node.ctx != "load")
        # A name that is only ever set to literals has a twin, for where it is printed: messages may be searched for it.
        for name in variables.keys() | constants.keys():
            assignments = constants.get(name, [])
            printed = name in variables or any(self._mark in self._text(_text_of(each.node)) for each in assignments)
            if printed and stores[name] == len(assignments):
                self._twins.add(name)
        for name in self._twins & constants.keys():
            for node in constants[name]:
                self._set_twin(node, name)
        self._visit(tree, printed=True)
        return {_TWIN + name if name in self._twins else name: self._text(value) for name, value in variables.items()}

    def _set_twin(self, node: nodes.Assign, name: str) -> None:
        place: dict[str, Any] = {"lineno": node.lineno, "environment": node.environment}
        targets = [nodes.Name(name, "store", **place), nodes.Name(_TWIN + name, "store", **place)]
        values = nodes.Tuple([node.node, nodes.Const(self._text(_text_of(node.node)), **place)], "load", **place)
        node.target = nodes.Tuple(targets, "store", **place)
        node.node = values
        self._crossed_out.append(values)

    def _visit(self, node: nodes.Node, *, printed: bool) -> None:
        if any(node is other for other in self._crossed_out):
            return
        if printed:
            match node:
                case nodes.TemplateData():
                    node.data = self._text(node.data)
                case nodes.Const(value=str(text)):
                    node.value = self._text(text)
                case nodes.Name(ctx="load") if node.name in self._twins:
                    node.name = _TWIN + node.name
        consulted = _consulted(node)
        for child in node.iter_child_nodes():
            self._visit(child, printed=printed and not any(child is other for other in consulted))

    def _text(self, text: str | None) -> str:
        """The text with control tokens, and pieces of them at its ends, replaced letter for letter."""
        text = text or ""
        letters = list(text)
        spans = [*self._control.find(text)]
        spans += [(len(text) - len(self._control.beginning_at_end(text)), len(text))]
        spans += [(0, len(self._control.ending_at_start(text)))]
        for start, end in spans:
            letters[start:end] = self._mark * (end - start)
        return "".join(letters)


def _text_of(node: nodes.Node) -> str | None:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def _own(prompt: str, form: _Form, render: Callable[..., str]) -> str:
    """The prompt with the template's control tokens crossed out; where that is in doubt they are not."""
    try:
        marked = render(form.template, **form.variables)
    except RequestError:
        return prompt  # The same template has just been rendered: the marks are in its way.
    if len(marked) == len(prompt) and _filled(marked, prompt, form.mark) == prompt:
        return marked
    # The marks changed what the template does. Before and after that the two are the same.
    size = len(prompt)
    head, tail = _same(marked, prompt, form.mark), _same(marked[::-1], prompt[::-1], form.mark)
    letters = list(prompt)
    for position in itertools.chain(range(head), range(max(head, size - tail), size)):
        says = [marked[position]] if position < head else []
        says += [marked[position - size]] if position >= size - tail else []
        if all(letter == form.mark for letter in says):
            letters[position] = form.mark
    return "".join(letters)


def _same(marked: str, prompt: str, mark: str) -> int:
    """Number of letters that both texts begin with; a mark equals any letter."""
    pairs = enumerate(zip(marked, prompt, strict=False))
    unlike = (position for position, (ours, theirs) in pairs if ours not in (theirs, mark))
    return next(unlike, min(len(marked), len(prompt)))


def _consulted(node: nodes.Node) -> list[nodes.Node | None]:
    """Children of a node that decide something and are not printed themselves."""
    match node:
        case nodes.Compare() | nodes.Test() | nodes.Not() | nodes.Slice():
            return list(node.iter_child_nodes())
        case nodes.If() | nodes.CondExpr() | nodes.For():
            return [node.test]
        case nodes.Getitem():
            return [node.arg]
        case nodes.Pair():
            return [node.key]
        case nodes.Filter() if node.name == "replace":
            return list(node.args[:1])
        case nodes.Filter() if node.name not in _TAKE_OUTPUT and not node.name.startswith("_"):
            return [*node.args, *node.kwargs]
        case nodes.Call(node=nodes.Getattr(attr=attr)) if attr not in _TAKE_OUTPUT:
            return list(node.args[:1])
    return []


def _break_between(start: int, token: str, mark: str, roles: Collection[str]) -> int | None:
    """Where to break a control token, next to a letter that is not the template's; None if there is no such letter.

    Args:
        start: position of the token in the prompt.
        token: text of the token, with marks for what the template wrote.
        roles: roles that may fill a gap in a control token.
    """
    foreign = token.strip(mark)
    if not foreign or (token[0] == token[-1] == mark and foreign.lower() in roles):
        return None
    position = start + token.index(foreign)
    return position if position > start else position + 1


def _filled(marked: str, prompt: str, mark: str) -> str:
    """``marked`` with what ``prompt`` has in place of the marks, as far as that goes."""
    return re.sub(f"{mark}+", lambda match: prompt[match.start() : match.end()], marked)
