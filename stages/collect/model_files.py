"""The files of a Hugging Face model that count for what its routers choose, by their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stages.digests import sha256_of_files
from stages.errors import BadInput

ENDINGS = (".json", ".safetensors", ".model", ".jinja")
TEXTS = ("vocab.txt", "merges.txt")


@dataclass(frozen=True)
class ModelFiles:
    """Configuration, weights and tokenizer in `folder`, and nothing else that lies there."""

    folder: Path

    def files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise BadInput(
                f"collect.model={self.folder} is no folder: name one with config.json, *.safetensors and a tokenizer."
            )
        return sorted(
            file for file in self.folder.iterdir() if file.suffix in ENDINGS or file.name in TEXTS if file.is_file()
        )

    def sha256(self) -> str:
        files = self.files()
        lines = [f"{file.name}\0{digest}" for file, digest in zip(files, sha256_of_files(files), strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
