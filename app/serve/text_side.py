"""The text side of a model, by its settings."""

from __future__ import annotations

from app.serving.engine_client import EngineClient
from app.serving.generator import Generator
from app.serving.ledger import Ledger
from app.settings import Settings
from app.store import ModelFiles


def text_side(settings: Settings, files: ModelFiles, client: EngineClient, ledger: Ledger) -> Generator:
    """Tokenizer, templates and defaults of the model in ``files``, over the engine of a client.

    Raises:
        ValueError: they cannot be used as the settings say.
    """
    return Generator.for_model(
        files,
        client,
        ledger,
        max_num_seqs=settings.max_num_seqs,
        max_queue=settings.max_queue,
        chat_template=settings.chat_template_name,
        tool_format=settings.tool_format,
        reasoning_format=settings.reasoning_format,
        default_sampling=settings.default_sampling,
    )
