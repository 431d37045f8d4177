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
from stages.collect.model_files import ModelFiles
from stages.collect.samples import DATA
from stages.errors import BadInput
from stages.model import TensorSpec
from tests.stages.collect.helpers import model

NEEDED: dict[str, dict[str, object]] = {
    **{kind: {"path": "loads.npz"} for kind in ("table", "auto", "sglang", "trtllm", "vllm", "adrs", "omni")},
    "transformers": {"model": "m", "text": ["a.txt"]},
    "sglang_server": {"path": "dumps", "url": "http://127.0.0.1:30000", "seconds": 1.0},
}
CONF = Path(__file__).parents[3] / "conf" / "collect"

SOURCES_THAT_ARE = ("sample", "table", "synthetic", "auto", "sglang", "trtllm", "vllm", "adrs", "omni", "transformers",
                    "sglang_server")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"source": "live"},
            f"collect.source=live is not known; allowed are {', '.join(SOURCES_THAT_ARE)}.",
        ),
        ({"sample": "qwen"}, "collect.sample=qwen is not known; allowed are gpt_oss_20b, olmoe, mixtral."),
        ({"on_bad": "mend"}, "collect.on_bad=mend is not known; allowed are error, drop, repair."),
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
        ({"window_by": "day"}, "collect.window_by=day is not known; allowed are steps, tokens, files."),
        ({"device": "tpu"}, "collect.device=tpu is not known; allowed are auto, cpu, cuda."),
        ({"batch": 0}, "collect.batch=0 is not possible: it must be at least 1."),
        ({"timeout": 0.0}, "collect.timeout=0.0 is not possible: it must be a finite number above 0."),
        ({"source": "sglang"}, "collect.path=null is not possible with collect.source=sglang: name the file to read."),
        (
            {"source": "transformers", "model": "m"},
            "collect.text=null is not possible with collect.source=transformers: name the text files that it reads.",
        ),
        (
            {"source": "transformers", "model": "m", "text": [1]},
            "collect.text=[1] is wrong: a file or a list of files is expected, like [a.txt,b.txt].",
        ),
        (
            {"source": "sglang_server", "url": "localhost"},
            "collect.url=localhost is no address of a server; one like http://127.0.0.1:30000 is needed.",
        ),
        (
            {"source": "sglang_server", "url": "http://x"},
            "collect.path=null is not possible with collect.source=sglang_server: name the folder it dumps into.",
        ),
        (
            {"source": "sglang_server", "url": "http://x", "path": "d"},
            "collect.seconds=null and collect.requests=null: say how long the server shall record.",
        ),
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
    "window_by": ({"window_by": "files"}, {}, set(SOURCES)),
    "current": ({"current": "deepseek_v3_32"}, {}, set(SOURCES)),
    "on_bad": ({"on_bad": "drop"}, {}, {"sample", "table"}),
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
        (
            {"source": "sglang", "path": "dumps", "current": "deepseek_v3_64"},
            {"collect.path": Path("dumps"), "collect.current": DATA / "deepseek_v3_placement_64.npz"},
        ),
        (
            {"source": "transformers", "model": "m", "text": "a.txt"},
            {"collect.model": ModelFiles(Path("m")), "collect.text[0]": Path("a.txt")},
        ),
        ({"source": "sglang_server", "path": "d", "url": "http://x", "seconds": 1.0}, {}),
    ],
)
def test_external_files(options: dict[str, object], files: dict[str, Path]) -> None:
    assert CollectStageConfig(CollectOptions(**options), model(), 0).external_files() == files  # type: ignore[arg-type]


def test_a_live_server_is_never_cached() -> None:
    for source, needed in NEEDED.items():
        options = CollectOptions(source=source, **needed)  # type: ignore[arg-type]
        assert CollectStageConfig(options, model(), 0).cacheable() == (source != "sglang_server")


def test_option_files_hold_only_what_differs_from_the_schema() -> None:
    defaults = dataclasses.asdict(CollectOptions())
    names = set()
    for path in CONF.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content.pop("defaults") == ["schema", "_self_"]
        assert all(defaults[key] != value for key, value in content.items())
        CollectOptions(**content, **NEEDED.get(str(content.get("source")), {}))
        names.add(path.stem)
    assert names == {"olmoe", "mixtral", *SOURCES_THAT_ARE}


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
