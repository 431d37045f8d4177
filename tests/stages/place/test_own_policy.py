"""`place.algorithm=module.function`: placed by a function of the user's, judged and keyed like any other."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from stages.errors import BadInput
from stages.model import ModelSpec, TensorSpec
from stages.paths import sha256
from stages.place.config import PlaceOptions, PlaceStageConfig
from stages.topology import Topology
from tests.stages.place.test_place_stage import COUNTS, METRICS, run

FRESH = itertools.count()
ROLL = "return np.stack([np.roll(np.arange(slots) % load.shape[1], layer) for layer in range(len(load))])"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that can be imported, under a name of its own: Python keeps what it has imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / f"own_policy_{next(FRESH)}.py"


def write(module: Path, body: str) -> str:
    module.write_text(f"import numpy as np\n\ndef mine(load, slots, topology):\n    {body}\n")
    return f"{module.stem}.mine"


def test_its_map_is_the_placement(module: Path, tmp_path: Path) -> None:
    result, placement = run(tmp_path, COUNTS, algorithm=write(module, ROLL), redundant_experts=2)
    expected = [np.roll(np.arange(14) % 12, layer) for layer in range(3)]
    assert np.array_equal(placement.physical_to_logical_map, expected)
    assert result.metrics.keys() >= {*METRICS, "balancedness_next_window"}
    assert result.tags["place.algorithm"] == f"{module.stem}.mine"


def test_it_sees_the_loads_the_slots_and_the_topology(module: Path, tmp_path: Path) -> None:
    told = "assert (load.dtype, load.shape, slots, topology.ranks, topology.nodes) == (np.float64, (3, 12), 16, 4, 2)"
    run(tmp_path, COUNTS, topology=(2, 2), algorithm=write(module, f"{told}\n    {ROLL}"), redundant_experts=3)


def test_it_may_write_into_the_loads_that_it_gets(module: Path, tmp_path: Path) -> None:
    kept, _ = run(tmp_path, COUNTS, algorithm=write(module, ROLL), load="last")
    module = module.with_name(f"{module.stem}_b.py")
    spoilt, _ = run(tmp_path, COUNTS, algorithm=write(module, f"load[:] = 0.0\n    {ROLL}"), load="last")
    seconds = {"solve_seconds": 0.0}
    assert {**kept.metrics, **seconds} == {**spoilt.metrics, **seconds}


def test_it_places_on_the_ranks_that_are_left(module: Path, tmp_path: Path) -> None:
    told = f"assert topology.ranks == 2\n    {ROLL}"
    _, placement = run(tmp_path, COUNTS, topology=(2, 2), algorithm=write(module, told), ranks=2)
    assert placement.deployed.shape == (3, 12)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return load", "returns float64 of shape [3, 12]; whole numbers of shape [3, 12] are needed"),
        ("return [[0] * slots]", "returns int64 of shape [1, 12]; whole numbers of shape [3, 12] are needed"),
        ("return np.zeros((3, slots), int)", "layer 0 holds expert 1 in no slot."),
        ("return np.tile(np.arange(slots) + 1, (3, 1))", "layer 0 slot 11 holds expert 12; allowed are 0 to 11"),
    ],
)
def test_what_is_no_placement_is_refused(module: Path, tmp_path: Path, body: str, said: str) -> None:
    name = write(module, body)
    with pytest.raises(BadInput) as error:
        run(tmp_path, COUNTS, algorithm=name)
    assert str(error.value).startswith(f"place.algorithm={name}")
    assert said in str(error.value)


def test_what_cannot_be_imported_is_named(module: Path, tmp_path: Path) -> None:
    write(module, ROLL)
    with pytest.raises(BadInput, match=f"place.algorithm={module.stem}.other cannot be imported: .*'other'"):
        run(tmp_path, COUNTS, algorithm=f"{module.stem}.other")
    config = PlaceStageConfig(
        PlaceOptions(algorithm="no_such_module.mine"), ModelSpec(tensors=[TensorSpec("w", [1], "uint8")]), Topology()
    )
    with pytest.raises(BadInput, match="there is no module no_such_module; install it, or name its folder in PYTHON"):
        config.external_files()


def test_the_key_holds_its_code_and_the_rule_of_windows(module: Path) -> None:
    tensors = [TensorSpec("w", [1], "uint8")]
    config = PlaceStageConfig(
        PlaceOptions(algorithm=write(module, ROLL), load="last"), ModelSpec(tensors=tensors), Topology()
    )
    assert {name: sha256(file) for name, file in config.external_files().items()} == {"place.algorithm": sha256(module)}
    assert config.key_config()["place"]["load"] == "last"
