"""References within a JSON Schema."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

from app.text.grammars.schema_places import Place

_ROOT: Final = "#"


class References:
    """Targets of the references of a schema, each under one name in the ``$defs`` of what is written.

    Iterating gives name, schema and place of each target once, those named meanwhile included.
    """

    def __init__(self, root: Mapping[str, Any] | bool, place: Place) -> None:
        self._root = root
        self._place = place
        self._id = root.get("$id", root.get("id")) if isinstance(root, Mapping) else None
        self._names: dict[str, str] = {}
        self._waiting: deque[tuple[str, Any, Place]] = deque()

    def __iter__(self) -> Iterator[tuple[str, Any, Place]]:
        while self._waiting:
            yield self._waiting.popleft()

    def name(self, reference: Any, place: Place) -> str:
        """The reference that is written for one. Raises :class:`RequestError` 400 when it leads nowhere.

        Args:
            place: where it stands.
        """
        if not isinstance(reference, str):
            raise place.refusal("is no reference")
        if isinstance(self._id, str) and self._id and reference.startswith(self._id.rstrip("#") + "#"):
            reference = reference[len(self._id.rstrip("#")) :]
        if reference in ("#", "#/"):
            return _ROOT
        if not reference.startswith("#/"):
            raise place.refusal("cannot be enforced: only references into the schema itself, #/..., are supported")
        if reference not in self._names:
            target = self._target(reference, place)
            self._names[reference] = name = f"d{len(self._names)}"
            where = Place(f"{self._place.param}/{unquote(reference[2:])}")
            self._waiting.append((name, target, where))
        return f"#/$defs/{self._names[reference]}"

    def _target(self, reference: str, place: Place) -> Any:
        target: Any = self._root
        for part in unquote(reference[2:]).split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and len(key) < 6 and int(key) < len(target):
                target = target[int(key)]
            else:
                raise place.refusal("leads to nothing in the schema")
            if target is not self._root and isinstance(target, Mapping) and _has_base(target):
                raise place.refusal("cannot be enforced: it leads into a schema with an $id of its own")
        return target


def _has_base(schema: Mapping[str, Any]) -> bool:
    """Whether references within a schema are relative to an address of its own."""
    own = schema.get("$id")
    return isinstance(own, str) and not own.startswith("#")


def resolve(schema: Any, root: Any, defs: Mapping[str, Any]) -> Any:
    """What a written schema that is a reference and nothing else leads to; others as they are. None for a circle."""
    for _ in range(len(defs) + 2):
        if not isinstance(schema, Mapping) or schema.keys() != {"$ref"}:
            return schema
        schema = target(schema["$ref"], root, defs)
    return None


def target(reference: str, root: Any, defs: Mapping[str, Any]) -> Any:
    """What a written reference leads to."""
    return root if reference == _ROOT else defs[reference.rpartition("/")[2]]
