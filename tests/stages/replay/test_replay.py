"""The replay of a trace: its seconds by hand, its rules window by window, and what the stage leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import paths
from stages.contract import StageResult, silent
from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import contiguous_map, moved_slots
from stages.load import LoadStats, write_load
from stages.model import ModelSpec, TensorSpec
from stages.replay.config import RULES, ReplayOptions, ReplayStageConfig
from stages.replay.report import quickest
from stages.replay.seconds import Speed, move
from stages.replay.stage import replay
from stages.replay.walk import Trace, Walk
from stages.solvers.options import PlaceOptions
from stages.solvers.solver import solver_of
from stages.topology import Link, Links, Topology

MODEL = ModelSpec(top_k=2, tensors=[TensorSpec("a", [600], "uint8"), TensorSpec("b", [400], "uint8")])
FAST = Links(Link(10.0, 1.0), Link(1.0, 2.0))
CALM = [[40, 40, 10, 10, 10, 10, 40, 40]]
"""[L=1, E=8]: on four ranks of two slots, contiguous is uneven (80 and 20), and 40 + 10 on each is even."""
TURNED = [[10, 20, 30, 40, 50, 60, 70, 80]]
"""Even with the first and the last expert on one rank, where `CALM` has two of its heavy ones."""


def options(**place: Any) -> PlaceOptions:
    return PlaceOptions(**{"max_steps": 30, **place})


def trace(counts: list[Any], topology: Topology | None = None, speed: Speed | None = None, **replay: Any) -> Trace:
    load = LoadStats(np.array(counts, dtype=np.int64))
    topology = topology or Topology(nodes=1, gpus_per_node=4, links=FAST)
    solver = solver_of(options(), MODEL, topology, 0, load)
    return Trace(load, solver, speed or Speed(100.0, 0.5, 2), 2, ReplayOptions(**replay))


def walk(rule: str, counts: list[Any], **replay: Any) -> Walk:
    return trace(counts, **replay).walk(rule, lambda part: None)


def test_seconds_of_a_window_by_hand() -> None:
    """200 counts at top 2 are 100 tokens: a second at 100 tokens a second, half of it stretched by max / mean."""
    speed = Speed(100.0, 0.5, 2)
    even = np.array([[50.0, 50.0, 50.0, 50.0]])
    assert speed.window_seconds(even, contiguous_map(1, 4, 4), 4) == pytest.approx(1.0)
    skewed = np.array([[125.0, 25.0, 25.0, 25.0]])
    assert speed.window_seconds(skewed, contiguous_map(1, 4, 4), 4) == pytest.approx(1 + 0.5 * 1.5)
    both = np.concatenate([even, skewed])
    assert speed.window_seconds(both, contiguous_map(2, 4, 4), 4) == pytest.approx(1 + 0.5 * 0.75)
    assert speed.window_seconds(np.zeros((1, 4)), contiguous_map(1, 4, 4), 4) == 0.0
    assert Speed(100.0, 0.0, 2).window_seconds(skewed, contiguous_map(1, 4, 4), 4) == pytest.approx(1.0)


def test_seconds_of_a_move_by_hand() -> None:
    """Rank 0 gets expert 1 from its node and 2 from the other: 1 kB over each link, two messages each."""
    old, new = np.array([[0, 0, 1, 1, 2, 2, 3, 3]]), np.array([[1, 2, 1, 0, 2, 2, 3, 3]])
    found = move(old, new, Topology(nodes=2, gpus_per_node=2, links=FAST), 1000, 2)
    near, cross = 1000 / 10e9 + 2 * 1e-6, 1000 / 1e9 + 2 * 2e-6
    assert (found.slots, found.moved_bytes) == (3, 3000)
    assert found.seconds == pytest.approx(near + cross)
    assert move(old, old, Topology(nodes=2, gpus_per_node=2), 1000, 2).seconds == 0


def test_bytes_are_those_of_the_direct_transfers() -> None:
    rng = np.random.default_rng(0)
    old, new = (np.stack([rng.permutation(16) for _ in range(3)]) for _ in range(2))
    found = move(old, new, Topology(nodes=2, gpus_per_node=4), 7, 1)
    plan = direct_transfers(old, new, 8, 4, 7)
    assert found.moved_bytes == plan.bytes[plan.network].sum() == 7 * moved_slots(old, new, 16, 8)


def test_never_and_always() -> None:
    never, always = (walk(rule, [CALM] * 4) for rule in ("never", "always"))
    assert never.balancedness.tolist() == [50 / 80] * 4
    assert not never.placed.any()
    assert never.moved_bytes.sum() == never.update_seconds.sum() == 0
    assert always.balancedness.tolist() == [50 / 80, 1, 1, 1]
    assert always.placed.tolist() == [False, True, True, True]
    assert always.moved_slots[1] > 0
    assert always.moved_slots[2:].tolist() == [0, 0]  # it is good already
    assert always.moved_bytes[1] == 1000 * always.moved_slots[1]
    assert (always.seconds == always.window_seconds + always.update_seconds).all()


def test_each_window_is_unseen_when_it_is_placed_for() -> None:
    found = walk("always", [CALM, TURNED, TURNED], history=1)
    assert found.balancedness[1] < 1  # placed for CALM
    assert found.balancedness[2] == 1


def test_once_waits_for_a_whole_history() -> None:
    found = walk("once", [CALM] * 5, history=3)
    assert found.placed.tolist() == [False, False, False, True, False]
    assert walk("once", [CALM] * 3, history=8).placed.tolist() == [False, False, True]
    assert walk("once", [CALM] * 3, history=None).placed.tolist() == [False, True, False]


def test_every_so_many_windows() -> None:
    assert np.flatnonzero(walk("every", [CALM] * 8, every=3).placed).tolist() == [3, 6]


def test_below_a_threshold() -> None:
    found = walk("threshold", [CALM, CALM, CALM, TURNED, TURNED], threshold=0.9, history=1)
    assert found.placed.tolist() == [False, True, False, False, found.balancedness[3] < 0.9]
    assert not walk("threshold", [CALM] * 4, threshold=0.5).placed.any()


@pytest.mark.parametrize(("payback", "placed"), [(1e-9, False), (1e9, True)])
def test_pays_back_weighs_savings_against_the_move(payback: float, placed: bool) -> None:
    found = walk("pays_back", [CALM] * 3, payback_windows=payback)
    assert found.placed[1] == placed
    assert found.placed[2] == False  # noqa: E712 (placed already, or not worth it again)


def test_pays_back_exactly_where_it_does() -> None:
    """The move takes as long as the saving of so many windows, a hair more and a hair less."""
    always = walk("always", [CALM] * 3)
    saving = always.window_seconds[0] - always.window_seconds[1]
    windows = always.update_seconds[1] / saving
    assert walk("pays_back", [CALM] * 3, payback_windows=windows * 1.001).placed[1]
    assert not walk("pays_back", [CALM] * 3, payback_windows=windows * 0.999).placed[1]


def run(folder: Path, counts: list[Any], labels: tuple[str, ...] = (), place: Any = None, **replay: Any) -> StageResult:
    write_load(folder, LoadStats(np.array(counts, dtype=np.int64), labels))
    return stage(folder, config(place=place, **replay))


def config(place: PlaceOptions | None = None, tokens_per_second: float | None = 50.0, **options_: Any) -> Any:
    return ReplayStageConfig(
        ReplayOptions(**options_),
        place or options(),
        {"tokens_per_second": tokens_per_second, "source": "table"},
        MODEL,
        Topology(nodes=1, gpus_per_node=4, links=FAST),
    )


def stage(folder: Path, config: ReplayStageConfig) -> StageResult:
    out = folder / "replay"
    out.mkdir(exist_ok=True)
    return replay(config, {"load": folder / paths.LOAD}, out, silent)


def test_what_the_stage_leaves(tmp_path: Path) -> None:
    counts = [CALM, CALM, TURNED, TURNED, CALM, TURNED]
    result = run(tmp_path, counts, tuple("abcdef"), history=2, every=2)
    table = pd.read_parquet(tmp_path / "replay" / paths.REPLAY)
    assert list(dict.fromkeys(table["rule"])) == list(RULES)
    assert len(table) == len(RULES) * 6
    assert table["label"].tolist() == list("abcdef") * len(RULES)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "replay" / paths.REPLAY_PREVIEW), table, check_dtype=False)
    for rule, rows in table.groupby("rule"):
        assert result.metrics[f"balancedness_{rule}"] == pytest.approx(rows["balancedness"].mean())
        assert result.metrics[f"moved_bytes_{rule}"] == rows["moved_bytes"].sum()
        assert result.metrics[f"placements_{rule}"] == rows["placed"].sum()
        seconds = rows["window_seconds"].sum() + rows["update_seconds"].sum()
        assert result.metrics[f"seconds_{rule}"] == pytest.approx(seconds)
    best = min(RULES, key=lambda rule: result.metrics[f"seconds_{rule}"])
    assert result.tags["replay.quickest"] == best
    assert f"**`{best}` is the quickest**" in result.note
    assert "at 50 tokens a second" in result.note
    assert "0.5 of a step governed by expert balance" in result.note
    assert result.metrics["tokens_per_second"] == 50
    assert result.metrics["moe_time_fraction"] == 0.5
    assert result.figures.keys() == {"balancedness", "moved_bytes", "seconds_saved"}
    lines = {line.get_label(): line.get_ydata() for line in result.figures["seconds_saved"].axes[0].lines}
    assert lines.keys() == set(RULES)
    assert (lines["never"] == 0).all()
    saved = result.metrics["seconds_never"] - result.metrics[f"seconds_{best}"]
    assert lines[best][-1] == pytest.approx(saved)
    for name, figure in result.figures.items():
        figure.savefig(tmp_path / f"{name}.png")


def test_any_solver_can_be_replayed(tmp_path: Path) -> None:
    result = run(tmp_path, [CALM, CALM], place=PlaceOptions(algorithm="eplb"), rules=["always"])
    assert result.metrics["balancedness_always"] > 50 / 80
    assert "`eplb`" in result.note


def test_same_trace_same_bytes(tmp_path: Path) -> None:
    digests = []
    for _ in range(2):
        run(tmp_path, [CALM, TURNED, CALM])
        digests.append([paths.sha256(tmp_path / "replay" / name) for name in (paths.REPLAY, paths.REPLAY_PREVIEW)])
    assert digests[0] == digests[1]


def test_a_replay_that_the_clock_cut_says_so(tmp_path: Path) -> None:
    place = PlaceOptions(seconds=1e-9, redundant_experts=8)
    counts = np.random.default_rng(0).integers(1, 1000, (3, 4, 16)).tolist()
    assert "cut by the clock (place.seconds=1e-09)" in run(tmp_path, counts, place=place).note


def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="replay needs at least two windows"):
        run(tmp_path, [CALM])
    write_load(tmp_path, LoadStats(np.array([CALM, CALM])))
    with pytest.raises(BadInput, match=r"collect\.tokens_per_second=null is not possible with replay"):
        stage(tmp_path, config(tokens_per_second=None))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rules": ["never", "daily"]}, "replay.rules=daily is not known; allowed are never, once, every, threshold, pays_back, always."),
        ({"rules": []}, "replay.rules must name at least one rule, and none twice."),
        ({"rules": ["never", "never"]}, "replay.rules must name at least one rule, and none twice."),
        ({"every": 0}, "replay.every=0 is not possible: it must be at least 1."),
        ({"history": 0}, "replay.history=0 is not possible: it must be at least 1."),
        ({"threshold": 1.5}, "replay.threshold=1.5 is not possible: allowed are 0 to 1."),
        ({"payback_windows": 0.0}, "replay.payback_windows=0.0 is not possible: it must be above 0."),
    ],
)  # fmt: skip
def test_options_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        ReplayOptions(**values)
    assert str(error.value) == message


def test_the_key_holds_what_counts() -> None:
    key = config().key_config()
    assert key["collect"] == {"tokens_per_second": 50.0}
    assert key["topology"]["links"]["within_node"] == {"gb_per_s": 10.0, "latency_us": 1.0, "curve": []}
    assert key["model"]["moe_time_fraction"] == 0.5
    assert config(every=3).key_config() != key
    assert config(place=options(max_steps=3)).key_config() != key
    assert config(tokens_per_second=51.0).key_config() != key


def test_the_first_of_equally_quick_rules_is_named() -> None:
    walks = [walk(rule, [TURNED, TURNED]) for rule in ("never", "threshold")]
    zero = [Walk(w.rule, w.balancedness, w.placed, w.moved_slots, w.moved_bytes, w.update_seconds * 0, w.window_seconds * 0, False) for w in walks]  # fmt: skip
    assert quickest(zero).rule == "never"
