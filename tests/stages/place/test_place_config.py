"""What the options allow, and what of them is in the key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import conf
from stages.errors import BadInput
from stages.model import ModelSpec, TensorSpec
from stages.place.config import PlaceOptions, PlaceStageConfig
from stages.topology import Link, Links, Topology

TENSORS = [TensorSpec("w", [2, 2], "float32")]
BASE = PlaceStageConfig(PlaceOptions(), ModelSpec(tensors=TENSORS), Topology())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"algorithm": "greedy"},
            "place.algorithm=greedy is not known; allowed are contiguous, eplb, file, local_search.",
        ),
        (
            {"algorithm": "no such.policy"},
            "place.algorithm=no such.policy is not known; allowed are contiguous, eplb, file, local_search.",
        ),
        (
            {"algorithm": "file"},
            "place.algorithm=file needs place.path: a placement file (.json, .safetensors, .npy, .npz).",
        ),
        ({"load": "mode"}, "place.load=mode is not known; allowed are ewma, last, mean, quantile."),
        ({"redundancy": "some"}, "place.redundancy=some is not known; allowed are current, per_layer, total."),
        ({"locality": "host"}, "place.locality=host is not known; allowed are node_groups, none."),
        ({"objective": "speed"}, "place.objective=speed is not known; allowed are balance, movement."),
        ({"max_moved_bytes": -1}, "place.max_moved_bytes=-1 must not be negative."),
        ({"max_moved_slots": -5}, "place.max_moved_slots=-5 must not be negative."),
        ({"min_gain": float("nan")}, "place.min_gain=nan must not be negative."),
        ({"min_gain": 1.5}, "place.min_gain=1.5 is not possible: allowed are 0 to 1."),
        ({"load_quantile": 90}, "place.load_quantile=90 is not possible: allowed are 0 to 1."),
        ({"target_balancedness": 1.01}, "place.target_balancedness=1.01 is not possible: allowed are 0 to 1."),
        ({"seconds": 0.0}, "place.seconds=0.0 is not possible: it must be above 0."),
        ({"load_half_life": -1.0}, "place.load_half_life=-1.0 is not possible: it must be above 0."),
        ({"max_steps": 0}, "place.max_steps=0 is not possible: it must be at least 1."),
        (
            {"objective": "movement"},
            "place.objective=movement needs place.target_balancedness: the balancedness to reach.",
        ),
        (
            {"objective": "balance", "target_balancedness": 0.9},
            (
                "place.target_balancedness=0.9 is for place.objective=movement; "
                "place.objective=balance seeks the best there is."
            ),
        ),
        (
            {"algorithm": "eplb", "max_moved_bytes": 1},
            "place.max_moved_bytes=1 is for place.algorithm=local_search; eplb cannot follow it.",
        ),
        (
            {"algorithm": "contiguous", "redundancy": "total"},
            "place.redundancy=total is for place.algorithm=local_search; contiguous cannot follow it.",
        ),
        ({"redundant_experts": -1}, "place.redundant_experts=-1 must not be negative."),
        (
            {"current": ""},
            "place.current is empty; allowed are contiguous, loads and the name of a placement file.",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        PlaceOptions(**options)
    assert str(error.value) == message
    assert error.value.exit_code == 2


def changed(algorithm: str, group: str, values: dict[str, Any]) -> tuple[Any, Any]:
    """The keys before and after a change of one group's values."""
    path = "a.json" if algorithm == "file" else None
    base = replace(BASE, place=PlaceOptions(algorithm=algorithm, path=path))
    return base.key_config(), replace(base, **{group: replace(getattr(base, group), **values)}).key_config()


@pytest.mark.parametrize(
    ("algorithm", "group", "values"),
    [
        ("eplb", "place", {"algorithm": "contiguous"}),
        ("eplb", "place", {"redundant_experts": 8}),
        ("eplb", "place", {"current": "loads"}),
        ("eplb", "place", {"current": "now.json"}),
        ("eplb", "model", {"num_groups": 4}),
        ("eplb", "topology", {"nodes": 4}),
        ("contiguous", "place", {"redundant_experts": 8}),
        ("contiguous", "topology", {"gpus_per_node": 8}),
        ("file", "topology", {"gpus_per_node": 8}),
    ],
)
def test_key_changes(algorithm: str, group: str, values: dict[str, Any]) -> None:
    before, after = changed(algorithm, group, values)
    assert before != after


@pytest.mark.parametrize(
    ("algorithm", "group", "values"),
    [
        ("eplb", "place", {"path": "unused.json"}),
        ("eplb", "model", {"name": "other"}),
        ("eplb", "model", {"layers": 3, "experts": 8, "top_k": 2}),
        ("eplb", "model", {"scale": 0.5}),
        ("eplb", "model", {"tensors": [*TENSORS, TensorSpec("v", [1], "uint8")]}),
        ("eplb", "topology", {"name": "other"}),
        ("eplb", "topology", {"gpus_per_host": 4}),
        ("eplb", "topology", {"links": Links(Link(1.0, 1.0), Link(1.0, 1.0))}),
        ("contiguous", "model", {"num_groups": 4}),
        ("file", "model", {"num_groups": 4}),
        ("file", "place", {"redundant_experts": 8}),
        ("file", "place", {"path": "moved/a.json"}),
    ],
)
def test_key_stays(algorithm: str, group: str, values: dict[str, Any]) -> None:
    before, after = changed(algorithm, group, values)
    assert before == after


def test_key_does_not_hold_where_files_lie() -> None:
    keys = [
        replace(BASE, place=PlaceOptions(algorithm="file", path=path, current=current)).key_config()
        for path, current in (("a.json", "b.json"), ("elsewhere/a.json", "elsewhere/b.json"))
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (PlaceOptions(), {}),
        (PlaceOptions(path="unused.json", current="loads"), {}),
        (PlaceOptions(current="now.npz"), {"place.current": Path("now.npz")}),
        (
            PlaceOptions(algorithm="file", path="new.json", current="now.npz"),
            {"place.path": Path("new.json"), "place.current": Path("now.npz")},
        ),
    ],
)
def test_external_files(options: PlaceOptions, files: dict[str, Path]) -> None:
    assert replace(BASE, place=options).external_files() == files


@pytest.mark.parametrize("name", ["contiguous", "eplb", "file"])
def test_option_files_choose_the_algorithm_they_are_named_for(name: str) -> None:
    shipped = yaml.safe_load((Path(conf.__file__).parent / "place" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert shipped.pop("defaults") == ["schema", "_self_"]
    values = {
        "place": {**shipped, "path": "a.json"},
        "model": {"tensors": [{"name": "w", "shape": [1], "dtype": "uint8"}]},
        "topology": {},
    }
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PlaceStageConfig), values))
    assert isinstance(config, PlaceStageConfig)
    assert config.place == PlaceOptions(algorithm=name, path="a.json")


def test_the_stage_imports_cheaply() -> None:
    code = (
        "import sys, stages.place.stage; "
        "print(sorted({'torch', 'matplotlib', 'pandas', 'pyarrow', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
