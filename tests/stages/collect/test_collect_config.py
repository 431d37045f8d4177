"""Options are checked with their full key, and the key holds what can change the result and no more."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from stages.collect.config import CollectOptions, CollectStageConfig
from stages.collect.samples import DATA
from stages.errors import BadInput
from stages.model import TensorSpec
from tests.stages.collect.helpers import model

CONF = Path(__file__).parents[3] / "conf" / "collect"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "live"}, "collect.source=live is not known; allowed are sample, table, synthetic."),
        ({"sample": "qwen"}, "collect.sample=qwen is not known; allowed are gpt_oss_20b, olmoe, mixtral."),
        ({"on_bad": "repair"}, "collect.on_bad=repair is not known; allowed are error."),
        ({"distribution": "even"}, "collect.distribution=even is not known; allowed are lognormal, zipf."),
        ({"window": 0}, "collect.window=0 is not possible: it must be at least 1."),
        ({"windows": 0}, "collect.windows=0 is not possible: it must be at least 1."),
        ({"tokens": -1}, "collect.tokens=-1 is not possible: it must be at least 1."),
        ({"exponent": -0.1}, "collect.exponent=-0.1 is not possible: it must be a finite number of at least 0."),
        ({"sigma": float("nan")}, "collect.sigma=nan is not possible: it must be a finite number of at least 0."),
        ({"sigma": float("inf")}, "collect.sigma=inf is not possible: it must be a finite number of at least 0."),
        ({"tokens_per_second": 0.0}, "collect.tokens_per_second=0.0 is not possible: it must be above 0."),
        ({"drift": 1.5}, "collect.drift=1.5 is not possible: allowed are 0 to 1."),
        ({"drift": float("nan")}, "collect.drift=nan is not possible: allowed are 0 to 1."),
        ({"source": "table"}, "collect.path=null is not possible with collect.source=table: name the file to read."),
        (
            {"source": "table", "path": "loads.txt"},
            "collect.path=loads.txt has no known ending; allowed are .npz, .npy, .safetensors, .json, .csv, .parquet.",
        ),
        ({"path": "loads.npz"}, "collect.path=loads.npz is not read by collect.source=sample; use collect=table."),
        (
            {"source": "synthetic", "label": "day"},
            "collect.label=day chooses nothing: synthetic windows have no labels.",
        ),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as error:
        CollectOptions(**options)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_bad_seed() -> None:
    with pytest.raises(BadInput, match="seed=-1 is not possible"):
        CollectStageConfig(CollectOptions(), model(), -1)


SOURCES: dict[str, dict[str, object]] = {
    "sample": {},
    "table": {"source": "table", "path": "loads.npz"},
    "zipf": {"source": "synthetic", "distribution": "zipf"},
    "lognormal": {"source": "synthetic"},
}
GENERATOR = {"windows": 9, "tokens": 9, "drift": 0.9}
FILES = {"first_moe_layer": 1, "dense_layers": [2]}
CHANGES: dict[str, tuple[dict[str, object], dict[str, object], set[str]]] = {
    # name: changed options, changed model, sources whose result may change
    **{name: ({name: value}, {}, {"zipf", "lognormal"}) for name, value in GENERATOR.items()},
    **{name: ({}, {name: value}, {"sample", "table"}) for name, value in FILES.items()},
    **{name: ({}, {name: 2}, set(SOURCES)) for name in ("layers", "experts", "top_k")},
    "window": ({"window": 3}, {}, set(SOURCES)),
    "exponent": ({"exponent": 2.0}, {}, {"zipf"}),
    "sigma": ({"sigma": 2.0}, {}, {"lognormal"}),
    "sample": ({"sample": "olmoe"}, {}, {"sample"}),
    "tensors": ({}, {"tensors": [TensorSpec("w", [9], "uint8")]}, set()),
    "scale": ({}, {"scale": 0.5}, set()),
    "name": ({}, {"name": "other"}, set()),
    "num_groups": ({}, {"num_groups": 2}, set()),
}


def key(options: dict[str, object], changes: dict[str, object], seed: int = 0) -> object:
    spec = dataclasses.replace(model(), **changes)  # type: ignore[arg-type]
    return CollectStageConfig(CollectOptions(**options), spec, seed).key_config()  # type: ignore[arg-type]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("source", SOURCES)
def test_key_changes_with_what_the_source_uses(source: str, change: str) -> None:
    options, spec, matters = CHANGES[change]
    changed = key(SOURCES[source], {}) != key({**SOURCES[source], **options}, spec)
    assert changed == (source in matters)


def test_key_of_labels_paths_and_seeds() -> None:
    table = {"source": "table", "path": "a/loads.npz"}
    assert key(table, {}) == key({**table, "path": "b/other.csv"}, {}, seed=9)
    assert key(table, {}) != key({**table, "label": "day"}, {})
    assert key({}, {}) == key({}, {}, seed=9)
    assert key({}, {}) != key({"label": "day"}, {})
    assert key(SOURCES["zipf"], {}) != key(SOURCES["zipf"], {}, seed=9)


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({}, {"collect.sample": DATA / "gpt_oss_20b_counts.npz"}),
        ({"sample": "olmoe"}, {"collect.sample": DATA / "olmoe_mixtral_counts.npz"}),
        ({"sample": "mixtral"}, {"collect.sample": DATA / "olmoe_mixtral_counts.npz"}),
        ({"source": "table", "path": "a/loads.npz"}, {"collect.path": Path("a/loads.npz")}),
        ({"source": "table", "path": "~/loads.npz"}, {"collect.path": Path.home() / "loads.npz"}),
        ({"source": "synthetic"}, {}),
    ],
)
def test_external_files(options: dict[str, object], files: dict[str, Path]) -> None:
    assert CollectStageConfig(CollectOptions(**options), model(), 0).external_files() == files  # type: ignore[arg-type]


def test_option_files_hold_only_what_differs_from_the_schema() -> None:
    defaults = dataclasses.asdict(CollectOptions())
    names = set()
    for path in CONF.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content.pop("defaults") == ["schema", "_self_"]
        assert all(defaults[key] != value for key, value in content.items())
        CollectOptions(**content, **({"path": "loads.npz"} if content.get("source") == "table" else {}))
        names.add(path.stem)
    assert names == {"sample", "table", "synthetic", "olmoe", "mixtral"}


def test_hints_can_be_resolved() -> None:
    assert typing.get_type_hints(CollectStageConfig)["collect"] is CollectOptions
    assert set(typing.get_type_hints(CollectOptions)) == set(dataclasses.asdict(CollectOptions()))


def test_importing_the_stage_is_cheap() -> None:
    code = (
        "import sys, stages.collect.stage\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'matplotlib', 'scipy', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
