"""Whether a JSON Schema has finite values: one that needs itself within itself would never let an answer end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from app.text.grammars.schema_places import Place
from app.text.grammars.schema_refs import target

_MAX_LOOKS: Final = 50_000
"""Most looks at schemas; those of applications take one or two at each."""


def check_finite(root: Any, defs: Mapping[str, Any], place: Place) -> None:
    """Refuses a written schema without values that end, or with a reference to such a one.

    Raises:
        RequestError: 400, there are none, or that is too much work to find out.
    """
    _Search(root, defs, place).run()


class _Search:
    def __init__(self, root: Any, defs: Mapping[str, Any], place: Place) -> None:
        self._root, self._defs, self._place = root, defs, place
        self._finite: set[int] = set()
        """Schemas, by their address, of which values that end are known."""
        self._looks = 0

    def run(self) -> None:
        schemas = [self._root, *self._defs.values()]
        users: dict[int, list[Any]] = {id(schema): [] for schema in schemas}
        for schema in schemas:
            for used in _references(schema):
                users[id(target(used, self._root, self._defs))].append(schema)
        waiting = list(schemas)  # taken from its end: what is referred to mostly stands behind who refers to it
        while waiting:
            schema = waiting.pop()
            if id(schema) not in self._finite and self._ends(schema):
                self._finite.add(id(schema))
                waiting += users[id(schema)]
        if not all(id(schema) in self._finite for schema in schemas):
            raise self._place.refusal("allows no finite value: it needs itself within itself")

    def _ends(self, schema: Any) -> bool:
        """Whether a schema has a value that ends, as far as is known."""
        self._looks += 1
        if self._looks > _MAX_LOOKS:
            raise self._place.refusal("is too intricate: its references lead through too many schemas")
        if isinstance(schema, bool) or id(schema) in self._finite or "const" in schema or "enum" in schema:
            return True
        if "$ref" in schema:
            used = target(schema["$ref"], self._root, self._defs)
            if not isinstance(used, bool) and id(used) not in self._finite:
                return False
        if not all(map(self._ends, schema.get("allOf", ()))):
            return False
        if not all(any(map(self._ends, schema[choice])) for choice in ("anyOf", "oneOf") if choice in schema):
            return False
        types = schema.get("type", ())
        types = {types} if isinstance(types, str) else set(types)
        if types - {"array", "object"}:
            return True
        ends: dict[str, Callable[[Mapping[str, Any]], bool]] = {"array": self._array_ends, "object": self._object_ends}
        return any(ends[each](schema) for each in types or ends)

    def _array_ends(self, schema: Mapping[str, Any]) -> bool:
        least, prefix = schema.get("minItems", 0), schema.get("prefixItems", [])
        return all(map(self._ends, prefix[:least])) and (least <= len(prefix) or self._ends(schema.get("items", True)))

    def _object_ends(self, schema: Mapping[str, Any]) -> bool:
        properties, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(self._ends(properties.get(name, other)) for name in schema.get("required", ()))


def _references(schema: Any) -> Iterator[str]:
    """References within a written schema; constants, which may look like one, are none."""
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    elif isinstance(schema, Mapping):
        for keyword, value in schema.items():
            if keyword == "$ref":
                yield value
            elif keyword in ("properties", "patternProperties"):
                yield from _references(list(value.values()))
            elif keyword not in ("const", "enum", "required"):
                yield from _references(value)
