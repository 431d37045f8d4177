"""What an audit computes anew from the files that a stage left, without trusting what the stage said of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stages.temporary import temporary_folder

TOLERANCE = 1e-9
"""Of sums of floats, which another NumPy may add in another order."""


@dataclass
class Rederived:
    """`metrics` are those that the stage reported. `done`: what was computed anew and compared, in a few words each;
    `wrong`: a sentence for each difference."""

    metrics: Mapping[str, float]
    done: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def metric(self, name: str, value: float) -> None:
        """Compare a metric with what the files give. One that was not reported is not missed."""
        told = self.metrics.get(name)
        if told is not None and not math.isclose(told, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            self.wrong.append(f"the metric {name} is {told:.10g}, and the files give {value:.10g}")

    def metrics_of(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.metric(name, value)

    def must(self, holds: bool, otherwise: str) -> bool:
        """Note `otherwise`, a sentence, unless `holds`."""
        if not holds:
            self.wrong.append(otherwise)
        return holds

    def same_files(self, folder: Path, write: Callable[[Path], tuple[str, ...]]) -> None:
        """Compare files byte by byte with those that `write` makes anew from the same data."""
        with temporary_folder("audit") as temporary:
            for name in write(temporary):
                old, new = folder / name, temporary / name
                self.must(
                    old.is_file() and old.read_bytes() == new.read_bytes(),
                    f"{name} does not hold what the stage's other files say",
                )


RederiveFunction = Callable[[object, Mapping[str, Path], Path, Mapping[str, float]], Rederived]
"""`(config, inputs, folder, metrics)`: config and inputs as the stage was given them, the folder that holds its files,
and the metrics that it reported."""
