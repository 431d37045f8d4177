"""Placements in the formats that engines load and save: one module an engine, each with its writer and its reader.

What a file cannot hold is refused with a sentence, and what is written is read back before it counts.
"""

from __future__ import annotations

from stages.engine_formats.formats import FORMATS, export_placement
from stages.engine_formats.recognise import read_stored
from stages.engine_formats.stored import LayerNumbers, Stored

__all__ = ["FORMATS", "LayerNumbers", "Stored", "export_placement", "read_stored"]
