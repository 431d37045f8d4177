"""What a source of loads says, before anything of it is checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Dump:
    """Counts of any shape and dtype, as they were read.

    origin:  how messages name the source: the path of a file, or the name of a sample
    count:   should be [T, L, E] or [L, E], where L may include the dense layers of the model
    labels:  names of the windows, or nothing
    current: the [L, P] map that was in place, if the source holds it
    advice:  a sentence for who uses the source with a model that it does not fit
    """

    origin: str
    count: npt.NDArray[np.generic]
    labels: tuple[str, ...] = ()
    current: npt.NDArray[np.generic] | None = None
    advice: str = ""
