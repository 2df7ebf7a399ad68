"""The texts that quality is measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "data"
SHA256 = {
    "english": "edb872558e3f6d1ee5459a6ce66c1aaae87cd4904bbdd70fdba7d7b4515d78b9",
    "chinese": "538f5911f20f7132d4e2553a50af9f954008d4eeacee3da427900a54264c8303",
}


def read_text(language: str) -> str:
    """The text of a language.

    Raises:
        ValueError: it is not the text that figures are about.
    """
    data = (_DIRECTORY / f"{language}.txt").read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[language]:
        raise ValueError(f"the {language} text is not the one that figures are compared on")
    return data.decode()
