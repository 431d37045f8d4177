"""The real loads that are shipped; NOTICE says where they come from and what was done with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.collect.arrays import read_npz
from stages.collect.dump import Dump, of_array

DATA = Path(__file__).parent / "data"
OLMOE = "allenai/OLMoE@357454f (Apache-2.0)"


@dataclass(frozen=True)
class Sample:
    """`key`: what the names of the sample's arrays begin with, where a file holds several samples."""

    file: str
    origin: str
    advice: str
    key: str = ""

    @property
    def path(self) -> Path:
        return DATA / self.file


SAMPLES = {
    "gpt_oss_20b": Sample(
        "gpt_oss_20b_counts.npz",
        "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting@72b368f (Apache-2.0)",
        "This sample is of gpt-oss-20b: use model=gpt_oss_20b or model=custom, or collect=synthetic for another model.",
    ),
    "olmoe": Sample(
        "olmoe_mixtral_counts.npz",
        OLMOE,
        "This sample has layers 0, 7 and 15 of OLMoE-1B-7B alone: use model=custom, or model.layers=3.",
        "olmoe_1b_7b.",
    ),
    "mixtral": Sample(
        "olmoe_mixtral_counts.npz",
        OLMOE,
        "This sample has layers 0, 7 and 15 of Mixtral-8x7B alone: use model=custom, or model.layers=3.",
        "mixtral_8x7b.",
    ),
}


PLACEMENTS = {f"deepseek_v3_{devices}": DATA / f"deepseek_v3_placement_{devices}.npz" for devices in (32, 64)}
"""Placements of DeepSeek-V3 in production, by their number of devices: for `collect.current`."""


def read_sample(name: str) -> Dump:
    """A shipped sample; its windows are generations (`gpt_oss_20b`) or domains of text, and all have labels."""
    sample = SAMPLES[name]
    origin = f"sample {name}"
    if not sample.key:
        return replace(read_npz(sample.path), origin=origin, advice=sample.advice)
    with np.load(sample.path, allow_pickle=False) as file:
        domains = {key.removeprefix(sample.key): file[key] for key in file.files if key.startswith(sample.key)}
    return of_array(origin, np.stack(list(domains.values())), tuple(domains), advice=sample.advice)
