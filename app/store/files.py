"""A model's files, read from the directory they lie in."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from app.checkpoints.header import WeightError
from app.checkpoints.safetensors_header import read_safetensors_header
from app.models.architectures import parse_config
from app.models.config import ConfigError
from app.store.eos_tokens import eos_token_ids
from app.store.errors import StoreError
from app.store.special_tokens import DeclaredTokens, TokenizerFiles, declared_tokens

INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"
"""Directory of templates, each a file of its name."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_DEFAULT_TEMPLATE = "default"
_MAX_TEMPLATES = 32
_NAMES_SHOWN = 5
_MAX_BYTES = 256 << 20
"""Most bytes of a file that is read whole. The largest tokenizers take some 40 MB."""
_MAX_JSON = 32 << 20
"""Most bytes of a config or an index. As Python objects they take many times that; the largest have some 10 MB."""


@dataclass(frozen=True)
class ModelFiles:
    """All that is needed to serve a model."""

    name: str
    """Name of the model for clients, unless the settings say otherwise."""
    directory: Path
    """Directory that holds ``config.json``."""
    weights: tuple[Path, ...]
    """Absolute paths of the weights: safetensors files, or the GGUF file, or all of those that one is split into."""
    config: dict[str, Any]
    """Contents of ``config.json``."""
    generation_config: dict[str, Any]
    """Contents of ``generation_config.json``, with sampling defaults; empty when the model has none."""
    tokenizer_file: Path
    """Path of ``tokenizer.json``."""
    chat_template: str | None
    """Jinja source of the chat template; None when the model has none."""
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    eos_token_ids: tuple[int, ...]
    """Every id that ends an answer, ascending: those of config, generation config and tokenizer together."""
    add_bos: bool
    """Begin texts with BOS even if the tokenizer's own post-processor does not."""
    chat_templates: dict[str, str] = field(default_factory=dict)
    """Sources of the model's other chat templates by their names, e.g. ``tool_use``."""
    special_tokens: dict[str, str] = field(default_factory=dict)
    """Text by name, as templates use them: ``bos_token``, ``unk_token`` and the like, and the model's own names."""


def read_model(
    name: str, directory: Path, weights: Sequence[Path], *, tokenizer_file: Path | None = None, via: str | None = None
) -> ModelFiles:
    """Reads the JSON files of a model directory.

    Args:
        via: the library that is to compute the model; None: tuili does.

    Raises:
        StoreError: a file is missing, unreadable or of a shape that cannot be served.
    """
    config = read_config(directory, via)
    generation = _read_generation_config(directory / "generation_config.json")
    tokenizer_file = tokenizer_file or directory / "tokenizer.json"
    definition = None
    if tokenizer_file.exists():
        check_size(tokenizer_file)
        definition = _read_bytes(tokenizer_file)
    tokenizer = _read_tokenizer_files(directory, definition)
    tokens = _declared_tokens(directory, tokenizer)
    templates = _chat_templates(directory, tokenizer.tokenizer_config)
    return ModelFiles(
        name=name,
        directory=directory,
        weights=tuple(weights),
        config=config,
        generation_config=generation,
        tokenizer_file=tokenizer_file,
        chat_template=templates.pop(_DEFAULT_TEMPLATE, None),
        bos_token=tokens.named.get("bos_token"),
        eos_token=tokens.named.get("eos_token"),
        pad_token=tokens.named.get("pad_token"),
        eos_token_ids=eos_token_ids(directory, generation, tokenizer, tokens, via),
        add_bos=tokens.adds_bos,
        chat_templates=templates,
        special_tokens=tokens.named,
    )


def read_declared_tokens(directory: Path, definition: bytes) -> DeclaredTokens:
    """What the files around a ``tokenizer.json`` make of its tokens.

    Args:
        directory: where they are, if there are any.
        definition: contents of the ``tokenizer.json``.

    Raises:
        StoreError: a file is unreadable, or lists something that is no token.
    """
    return _declared_tokens(directory, _read_tokenizer_files(directory, definition))


def find_weights(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a model directory, their headers and the shard index checked.

    Raises:
        StoreError: there are none, a shard or one of its tensors is missing, or a header is broken.
    """
    single = directory / "model.safetensors"
    if single.is_file():
        _tensor_names(single)
        return (single,)
    if (directory / INDEX).is_file():
        return _shards(directory)
    found = sorted(file for file in directory.glob("*.safetensors") if file.is_file())
    if len(found) > 1:
        raise StoreError(f"{directory}: {len(found)} .safetensors files but no {INDEX}")
    if not found:
        raise StoreError(f"{directory}: {_what_instead(directory)}")
    _tensor_names(found[0])
    return (found[0],)


def read_config(directory: Path, via: str | None = None) -> dict[str, Any]:
    """Reads ``config.json`` and checks that such a model can be served.

    Args:
        via: the library that is to compute the model, which then has to know it; None: tuili does.

    Raises:
        StoreError: missing, unreadable or of a shape that cannot be served.
    """
    file = directory / "config.json"
    config = _read_json(file)
    if via is not None:
        return config
    try:
        parse_config(config)
    except ConfigError as e:
        raise StoreError(f"{file}: {e}") from None
    return config


def _read_json(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        unique: no name may stand twice in an object, of which the second would count.

    Raises:
        StoreError: missing, unreadable, or something else than an object.
    """
    try:
        value = json.loads(_read(path), object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as e:
        raise StoreError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path}: not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice")
        found[name] = value
    return found


def _read(path: Path) -> bytes:
    check_size(path, _MAX_JSON)
    return _read_bytes(path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror or e}") from None


def check_size(path: Path, limit: int = _MAX_BYTES) -> None:
    """Keeps what a model directory links to (a device, a pipe) from being read for ever.

    Raises:
        StoreError: no regular file, or one larger than any that is read whole.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file") from None
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror or e}") from None
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path}: not a regular file")
    if status.st_size > limit:
        raise StoreError(f"{path}: {status.st_size} bytes, at most {limit} are read")


def _read_tokenizer_files(directory: Path, definition: bytes | None) -> TokenizerFiles:
    return TokenizerFiles(
        config=_read_if_there(directory / "config.json"),
        tokenizer_config=_read_if_there(directory / "tokenizer_config.json"),
        special_tokens_map=_read_if_there(directory / "special_tokens_map.json"),
        added_tokens=_read_if_there(directory / "added_tokens.json"),
        definition=definition,
    )


def _declared_tokens(directory: Path, files: TokenizerFiles) -> DeclaredTokens:
    try:
        return declared_tokens(files)
    except StoreError as e:
        raise StoreError(f"{directory}: {e}") from None


def _read_if_there(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.exists() else {}


class _SamplingDefaults(msgspec.Struct):
    """Fields of a generation config that every request starts from."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None


def _read_generation_config(path: Path) -> dict[str, Any]:
    """The file's contents, its sampling defaults as numbers of the type that they are of."""
    generation = _read_if_there(path)
    top_k = generation.get("top_k")
    if isinstance(top_k, float) and top_k.is_integer():  # some write 50.0
        generation["top_k"] = int(top_k)
    try:
        defaults = msgspec.structs.asdict(msgspec.convert(generation, _SamplingDefaults))
    except msgspec.ValidationError as e:
        raise StoreError(f"{path}: {e}") from None
    return generation | {name: value for name, value in defaults.items() if name in generation}


def _shards(directory: Path) -> tuple[Path, ...]:
    index = directory / INDEX
    weight_map = _read_json(index, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise StoreError(f"{index}: weight_map is not an object of file names")
    if not weight_map:
        raise StoreError(f"{index}: weight_map names no files")
    shards: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        shards.setdefault(file, set()).add(tensor)
    for file, tensors in sorted(shards.items()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise StoreError(f"{index}: {file!r} is no safetensors file of this directory")
        if not (directory / file).is_file():
            raise StoreError(f"{directory}: {file} is missing, which {INDEX} names")
        absent = sorted(tensors - _tensor_names(directory / file))
        if absent:
            more = f" and {len(absent) - _NAMES_SHOWN} more" if len(absent) > _NAMES_SHOWN else ""
            names = ", ".join(map(repr, absent[:_NAMES_SHOWN]))
            raise StoreError(f"{directory / file}: {names}{more} missing, which {INDEX} names")
    return tuple(directory / file for file in sorted(shards))


def _tensor_names(file: Path) -> set[str]:
    try:
        return {entry.name for entry in read_safetensors_header(file)}
    except WeightError as e:
        raise StoreError(str(e)) from None


def _what_instead(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        return f"no safetensors weights; to serve the GGUF file name it: {directory / gguf[0]}"
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        return f"only pickled weights ({pickled[0]}), which are never opened: save the model as safetensors"
    dangling = [path.name for path in sorted(directory.iterdir()) if path.is_symlink() and not path.exists()]
    if dangling := [name for name in dangling if name.endswith((".safetensors", INDEX))]:
        return f"{dangling[0]} is a link to a file that is not there"
    return "no safetensors weights"


def _chat_templates(directory: Path, tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Sources of all templates by name. A file goes before the tokenizer config's template of that name."""
    files = {_DEFAULT_TEMPLATE: directory / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((directory / TEMPLATES).glob("*.jinja"))}
    templates = _templates_of_config(tokenizer.get("chat_template"))
    templates |= {name: _read_text(file) for name, file in files.items() if file.exists()}
    if len(templates) > _MAX_TEMPLATES:
        raise StoreError(f"{directory}: {len(templates)} chat templates, at most {_MAX_TEMPLATES} are read")
    return templates


def _templates_of_config(value: object) -> dict[str, str]:
    """A text, or several of them with their names."""
    match value:
        case str():
            return {_DEFAULT_TEMPLATE: value}
        case dict():
            named = list(value.items())
        case list():
            named = [(entry.get("name"), entry.get("template")) for entry in value if isinstance(entry, dict)]
        case _:
            return {}
    return {name: text for name, text in named if isinstance(name, str) and isinstance(text, str)}


def _read_text(file: Path) -> str:
    try:
        return _read(file).decode()
    except UnicodeDecodeError as e:
        raise StoreError(f"{file}: {e}") from None
