"""Checkpoint keys and manifests: what a stage's result depends on, and why a key differs from an earlier one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.code_digest import code_digest
from pipeline.declaration import StageSpec
from stages import paths
from stages.contract import Content
from stages.errors import BadInput

MAX_CHANGES = 3


@dataclass(frozen=True)
class KeyParts:
    """All that a stage's result depends on. `inputs`: input or external file -> SHA-256 of its content."""

    stage: str
    code_digest: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What is stored beside a finished stage's files; the key follows from the other fields."""

    stage: str
    key: str
    code_digest: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    environment: Mapping[str, str]
    git: Mapping[str, Any]
    started: str
    seconds: float

    def parts(self) -> KeyParts:
        return KeyParts(self.stage, self.code_digest, self.config, self.inputs, self.environment)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    paths.write_json(folder / paths.MANIFEST, asdict(manifest))


def read_manifest(path: Path) -> Manifest:
    return Manifest(**json.loads(path.read_text(encoding="utf-8")))


def key_parts(spec: StageSpec, config: Any, inputs: Mapping[str, str]) -> KeyParts:
    """`config`: the stage's config object; `inputs`: input name -> digest of the file it will read."""
    digests = dict(inputs)
    if hasattr(config, "external_files"):
        digests |= {name: _content(name, file) for name, file in config.external_files().items()}
    key_config = config.key_config() if hasattr(config, "key_config") else asdict(config)
    plain = json.loads(json.dumps(key_config))
    return KeyParts(spec.name, code_digest(spec.target), plain, digests, environment(config))


def _content(name: str, file: Path | Content) -> str:
    """The digest of an external file."""
    if not isinstance(file, str | Path):
        return file.sha256()
    if not Path(file).exists():
        raise BadInput(f"{name}={file} does not exist.")
    return paths.sha256(Path(file))


def environment(config: Any) -> dict[str, str]:
    """What of this machine can change the stage's result. Raises `BadInput` if it cannot run here."""
    return dict(config.environment()) if hasattr(config, "environment") else {}


def cacheable(config: Any) -> bool:
    return bool(config.cacheable()) if hasattr(config, "cacheable") else True


@dataclass(frozen=True)
class Difference:
    """In words, and how many things changed."""

    text: str
    changes: int


def difference(old: KeyParts, new: KeyParts) -> Difference:
    """Why `new` has another key than `old`, in a few words."""
    config = _changes(_flat(old.config), _flat(new.config))
    files = [name for name, _, _ in _changes(old.inputs, new.inputs)]
    environment = _changes(old.environment, new.environment)
    reasons = []
    if config:
        more = f" and {len(config) - MAX_CHANGES} more" if len(config) > MAX_CHANGES else ""
        reasons.append("config: " + ", ".join(map(_arrow, config[:MAX_CHANGES])) + more)
    if old.code_digest != new.code_digest:
        reasons.append("code changed")
    if files:
        reasons.append("input changed: " + ", ".join(files))
    if environment:
        reasons.append("environment: " + ", ".join(map(_arrow, environment)))
    changes = len(config) + len(files) + len(environment) + (old.code_digest != new.code_digest)
    return Difference("; ".join(reasons) or "nothing changed", changes)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(before.keys() | after.keys())
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _arrow(change: tuple[str, Any, Any]) -> str:
    name, before, after = change
    return f"{name} {_word(before)} → {_word(after)}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def _word(value: Any) -> str:
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
