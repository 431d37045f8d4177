"""Loading what torch saved, by its one safe door: tensors, numbers, texts and containers; nothing of it is ever run."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

from stages.errors import BadInput


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote, with tensors on the CPU, mapped from the file where it is a zip archive.

    Raises `BadInput` for anything that only a full unpickling could load, and for broken or empty files.
    """
    import torch

    with path.open("rb") as stream:
        start = stream.read(2)
    archive = zipfile.is_zipfile(path)
    if not start:
        raise BadInput(f"{path} is empty: it has no bytes.")
    if start == b"PK" and not archive:
        raise BadInput(f"{path} is broken or cut off: it begins as a zip archive and does not end as one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} is broken, or holds pickled Python objects that are no tensors, which are never loaded: "
            "nothing of it was run."
        ) from error
    except Exception as error:  # torch raises many kinds on broken archives
        first = next(iter(str(error).strip().splitlines()), "").partition(". ")[0]
        raise BadInput(f"{path} cannot be read as a .pt file: {type(error).__name__}: {first.rstrip('.')}.") from error
