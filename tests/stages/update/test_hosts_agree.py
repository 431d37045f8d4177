"""What ranks that were started apart say to each other: facts they must share, and who is to blame."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

from stages.errors import BadInput, Corruption, MoesaicError
from stages.update import blame as blaming
from stages.update import network
from stages.update.agreement import code_digest, disagreement, facts
from stages.update.blame import blame
from stages.update.failures import Failure, RanksLost, silence
from stages.update.machine import Machine
from stages.update.network import interface_towards, network_defaults
from stages.update.progress_board import Phase, ProgressBoard, Report
from stages.update.seat import Seat
from stages.update.stores import Line
from tests.stages.update.cases import Case, config_of

CONFIG = config_of(Case(nodes=2, slots_per_rank=3, experts=6), 4)
MACHINE = Machine("nccl", "H100", 2, "2.13.0", "2.28.9", "nccl", 2, None)
LOST = RuntimeError("Connection closed by peer [10.0.0.2]:1")
LATE = RuntimeError("Timed out waiting 8000ms for recv operation to complete")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"retries": 5}, "has another config of update"),
        ({"timeout_seconds": 5.0}, "has another config of update"),
        ({"staging_mib": 5.0}, "has another config of update"),
        ({"journal": "/scratch/journal"}, ""),
    ],
)
def test_options_that_all_ranks_must_share(change: dict[str, Any], said: str) -> None:
    theirs = facts(replace(CONFIG, update=replace(CONFIG.update, **change)), MACHINE)
    assert disagreement(3, theirs, facts(CONFIG, MACHINE)).startswith(f"Rank 3 {said}" if said else "")
    assert bool(disagreement(3, theirs, facts(CONFIG, MACHINE))) == bool(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"torch": "2.12.0"},
            "Rank 1 has torch 2.12.0 and NCCL 2.28.9, rank 0 has torch 2.13.0 and NCCL 2.28.9: start",
        ),
        ({"transport": "peer"}, "Rank 1 has nccl by peer, rank 0 has nccl by nccl: start all ranks in the same"),
        ({"device": "H200", "local_ranks": 1}, ""),
    ],
)
def test_machines_that_fit_each_other(change: dict[str, Any], said: str) -> None:
    found = disagreement(1, facts(CONFIG, replace(MACHINE, **change)), facts(CONFIG, MACHINE))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_another_seed_or_code() -> None:
    ours = facts(CONFIG, MACHINE)
    assert "seed than rank 0" in disagreement(2, facts(replace(CONFIG, seed=1), MACHINE), ours)
    assert disagreement(2, ours | {"code": "0"}, ours).startswith("Rank 2 runs other code of moesaic than rank 0")
    assert disagreement(2, {}, ours)
    assert len(code_digest()) == 64


def test_how_silence_is_told() -> None:
    assert silence([3], "in batch 4", False) == Failure("rank 3 is gone: last seen in batch 4", (3,))
    assert silence([3, 5], "in batch 4", False).sentence == "ranks 3 and 5 are gone: last seen in batch 4"
    assert silence([1, 3, 5], "in batch 4", True).sentence == (
        "ranks 1, 3 and 5 did not answer in time: last seen in batch 4"
    )


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure("BadInput: no"), BadInput),
        (Failure("Corruption: no"), Corruption),
        (Failure("rank 1 failed in batch 2: no"), MoesaicError),
        (Failure("rank 1 is gone", (1,)), RanksLost),
    ],
)
def test_all_ranks_raise_the_same(failure: Failure, kind: type[MoesaicError]) -> None:
    again = Failure.from_text(failure.to_text())
    assert again == failure
    assert type(again.error()) is kind
    assert getattr(again.error(), "ranks", ()) == failure.lost


class Ranks:
    """Ranks that each find out for themselves why the update ended, in threads, over one store."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blaming, "BLAME_SECONDS", 0.3)
        monkeypatch.setattr(blaming, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(blaming, "abandon", lambda: None)
        self.count, self._store = count, dist.HashStore()
        self.found: dict[int, Failure | None] = {}
        self._done = threading.Event()
        self._failing: list[threading.Thread] = []

    def line(self) -> Line:
        return Line(self._store, "here", 5)

    def beats(self, rank: int) -> None:
        """A rank that lives and has not noticed anything."""
        line, ticks = self.line(), iter(range(10**6))

        def run() -> None:
            while not self._done.wait(0.02):
                line.set(f"beat/0/{rank}", f"{next(ticks)} in batch 3")

        threading.Thread(target=run, daemon=True).start()

    def seen(self, rank: int) -> None:
        """A rank that was heard before."""
        self._store.set(f"beat/0/{rank}", "17 in batch 2")

    def fails(self, rank: int, error: BaseException) -> None:
        seat, board = Seat(rank, self.count, 0, 1, 2, "here", 1), ProgressBoard(None, self.count)
        board.report(rank, Report(Phase.batch, 4))

        def find_out() -> None:
            self.found[rank] = blame(self.line(), 0, seat, board, error)

        self._failing.append(threading.Thread(target=find_out))
        self._failing[-1].start()

    def agree(self) -> dict[int, Failure | None]:
        """What each rank that failed has found."""
        for thread in self._failing:
            thread.join(30)
        self._done.set()
        return self.found


def test_who_failed_is_told_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(3, monkeypatch)
    ranks.fails(0, LOST)
    ranks.fails(1, ValueError("no such weight"))
    ranks.fails(2, LOST)
    told = Failure("rank 1 failed in batch 4: ValueError: no such weight")
    assert ranks.agree() == {0: told, 1: told, 2: told}


def test_who_says_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 3 lives, though it has noticed nothing yet; rank 2 was ended by the launcher and says so; rank 1 is dead."""
    ranks = Ranks(4, monkeypatch)
    ranks.seen(1)
    ranks.beats(3)
    ranks.fails(2, SystemExit(143))
    ranks.fails(0, LOST)
    told = Failure("rank 1 is gone: last seen in batch 2", (1,))
    assert ranks.agree() == {0: told, 2: told}


def test_who_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(3, monkeypatch)
    ranks.fails(0, LATE)
    ranks.fails(1, LOST)
    told = Failure("rank 2 did not answer in time: last seen before its start", (2,))
    assert ranks.agree() == {0: told, 1: told}


def test_a_death_of_rank_0_is_told_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(3, monkeypatch)
    ranks.seen(0)
    ranks.fails(1, LOST)
    ranks.fails(2, LOST)
    found = ranks.agree()
    assert found[1] == found[2] == Failure("rank 0 is gone: last seen in batch 2", (0,))


def test_a_signal_that_ends_all_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(2, monkeypatch)
    ranks.fails(0, SystemExit(143))
    ranks.fails(1, SystemExit(143))
    assert ranks.agree() == {0: None, 1: None}


def test_a_lost_connection_between_ranks_that_all_live(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(2, monkeypatch)
    ranks.fails(0, LOST)
    ranks.fails(1, LOST)
    found = ranks.agree()
    assert found[0] == found[1]
    assert found[0] is not None
    assert found[0].sentence.startswith("rank 0 failed in batch 4: RuntimeError: Connection closed by peer")


class Deaf:
    """A store behind a link that is cut."""

    def get(self, key: str) -> bytes:
        time.sleep(5)
        return b""


def test_a_store_that_does_not_answer_is_given_up() -> None:
    line = Line(Deaf(), "10.0.0.1:29500", 0.2)  # type: ignore[arg-type]
    for patience in (0.2, 30):  # at once when it was silent before
        line.patience = patience
        began = time.monotonic()
        with pytest.raises(RuntimeError, match=r"^10\.0\.0\.1:29500 has not answered for"):
            line.get("x")
        assert time.monotonic() - began < 3


def test_a_line_passes_on_what_the_store_says() -> None:
    line = Line(dist.HashStore(), "here", 5)
    assert not line.check("a")
    line.set("a", "1")
    assert (line.get("a"), line.check("a"), line.add("n", 2), line.compare_set("a", "1", "2")) == ("1", True, 2, "2")
    store = dist.HashStore()
    store.set_timeout(dist.default_pg_timeout / 1e6)
    with pytest.raises(Exception, match=r"(?i)time"):
        Line(store, "here", 5).get("nothing")


def test_gloo_takes_the_interface_that_leads_to_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no.such.host.invalid") is None
    monkeypatch.setattr(network, "interface_towards", lambda address: {"10.0.0.1": "eth7"}.get(address))
    assert network_defaults(loopback=False, meeting_place="10.0.0.1")["GLOO_SOCKET_IFNAME"] == "eth7"
    assert "GLOO_SOCKET_IFNAME" not in network_defaults(loopback=False, meeting_place="10.0.0.9")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    assert "GLOO_SOCKET_IFNAME" not in network_defaults(loopback=False, meeting_place="10.0.0.1")
