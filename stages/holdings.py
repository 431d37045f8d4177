"""The journal artifact: what every slot holds after an update that did not come to its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages import paths


@dataclass(frozen=True)
class Holdings:
    """`committed`: how many of all `batches` each rank has committed; None where its journal cannot be seen from here.
    `physical_to_logical_map`: `[L][P]`, -1 where a slot holds nothing, or where that is lost or not known: a file that
    `place.current` takes. `lost_ranks`: those that died with what they held. `nowhere`: layer and logical expert, where
    no slot holds it. `checked`: checksums of slots that were compared with what the map says; `wrong`: layer, slot and
    tensor of those that differ.
    """

    batches: int
    committed: list[int | None]
    lost_ranks: list[int]
    nowhere: list[list[int]]
    physical_to_logical_map: list[list[int]]
    checked: int = 0
    wrong: list[list[int]] = field(default_factory=list)


def write_holdings(folder: Path, holdings: Holdings) -> tuple[str, ...]:
    """One line a layer of the map, which people read too."""
    values = asdict(holdings)
    layers = values.pop("physical_to_logical_map")
    head = json.dumps(values, indent=1).rstrip("}\n")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in layers)
    paths.write_text(folder / paths.JOURNAL, f'{head},\n "physical_to_logical_map": [\n{rows}\n ]\n}}\n')
    return (paths.JOURNAL,)


def read_holdings(path: Path) -> Holdings:
    return Holdings(**json.loads(path.read_text(encoding="utf-8")))
