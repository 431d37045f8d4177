"""The artifact of the functional proof: what the experts made of random tokens, before the update and after it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages import paths

MOST_DIFFERENCES = 1_000


@dataclass(frozen=True)
class Difference:
    """An expert that made something else of a token, and the slots that served it."""

    layer: int
    expert: int
    token: int
    slot_before: int
    slot_after: int

    def __str__(self) -> str:
        return (
            f"layer {self.layer} expert {self.expert} token {self.token}, which slot {self.slot_before} served before "
            f"the update and slot {self.slot_after} after it"
        )


@dataclass(frozen=True)
class FunctionalProof:
    """`before`, `after` [L]: SHA-256 over the outputs of all experts of a layer, in logical order; empty if not asked
    for. `products`: how many outputs of an expert for a token they cover; `different` of them differ, of which
    `differences` names the first. `arithmetic`: how they were computed."""

    arithmetic: str = ""
    products: int = 0
    different: int = 0
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def to_json(proof: FunctionalProof) -> bytes:
    return json.dumps(asdict(proof), indent=1).encode()


def from_json(data: bytes) -> FunctionalProof:
    value = json.loads(data)
    return FunctionalProof(**{**value, "differences": [Difference(**d) for d in value["differences"]]})


def write_functional(folder: Path, proof: FunctionalProof) -> tuple[str, ...]:
    paths.write_text(folder / paths.FUNCTIONAL, to_json(proof).decode() + "\n")
    return (paths.FUNCTIONAL,)


def read_functional(path: Path) -> FunctionalProof:
    return from_json(path.read_bytes())
