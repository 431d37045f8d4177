"""What moved: bytes from GPU to GPU, the update over time, what was predicted and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.report.colours import from_zero
from pipeline.report.heat import heat_map
from pipeline.report.lines import lying
from pipeline.report.markup import Html, join, table, tag
from pipeline.report.timeline import Trace, parts, phases
from pipeline.report.units import bytes_text, count, seconds, share
from stages.execution import Execution
from stages.holdings import Holdings

SHOWN = 20


def traffic(found: Mapping[str, Any]) -> Html:
    """`found`: traffic.json. From rank to rank, or from node to node where there are too many ranks for that."""
    by_rank = "bytes_from_rank_to_rank" in found
    what = "rank" if by_rank else "node"
    matrix = np.array(found[f"bytes_from_{what}_to_{what}"], dtype=np.float64)
    if not matrix.any():
        return tag("p", "Nothing crosses between GPUs.")
    least = found.get("least_cross_node_bytes")
    said = (
        f"{bytes_text(found['same_node_bytes'])} within nodes and {bytes_text(found['cross_node_bytes'])} across nodes"
        + (f", where no plan needs less than {bytes_text(least)}" if least is not None else "")
        + f"; {bytes_text(found['relay_bytes'])} of it by relays."
    )
    predicted = found.get("predicted") or {}
    if predicted.get("busiest_link"):
        said += f" Busiest link: {predicted['busiest_link']}, {seconds(predicted['busiest_link_seconds'])} at its full speed."
    drawn = heat_map(
        tag("b", f"Bytes from {what} to {what}"),
        matrix,
        from_zero("bytes sent", float(matrix.max()), bytes_text),
        f"receiving {what}",
        f"sending {what}",
        lambda src, dst, value: f"{what} {src} → {what} {dst}: {bytes_text(value)}",
        mark="Most",
        groups=int(found["gpus_per_node"]) if by_rank and found["nodes"] > 1 else 0,
        square=True,
    )
    kinds = {
        "same_gpu": "copied within its GPU", "free_rider": "copied from a slot that receives it",
        "same_node": "from its own node", "cross_node": "from another node", "relay": "passed on by a GPU that just got it",
    }  # fmt: skip
    rows = [(kinds.get(kind, kind), f"{number:,}") for kind, number in found["rows"].items()]
    ways = table(("how an expert reaches its slot", "hops"), list(rows), numbers=(1,))
    return join(tag("p", said), tag("div", drawn, tag("div", ways), class_="pair wide-first"))


def timeline(trace: Trace, execution: Execution | None) -> Html | None:
    drawn = [phases(trace), parts(trace)]
    if not any(drawn):
        return None
    took = f", {seconds(execution.update_seconds)}," if execution else ""
    note = f"The update's own time{took} counts from when the last rank was ready, the phase from when each was."
    return join(drawn[0], tag("p", note, class_="note"), drawn[1])


def predicted(found: Mapping[str, Any] | None, execution: Execution) -> Html:
    """Seconds, and bytes into every rank: of the plan, and as they were measured."""
    foretold = (found or {}).get("predicted") or {}
    took = execution.update_seconds
    rows = []
    if "lower_bound_seconds" in foretold:
        rows.append(
            (
                "least that the links allow",
                foretold["lower_bound_seconds"],
                seconds(foretold["lower_bound_seconds"]),
                "limit",
            )
        )
    if "seconds" in foretold:
        rows.append(("predicted by the plan", foretold["seconds"], seconds(foretold["seconds"]), "was"))
    rows.append(("measured", took, seconds(took), "now"))
    lines = [lying(rows)]
    if foretold.get("seconds") and took:
        much = off_by(foretold["seconds"], took)
        lines.append(
            tag(
                "p",
                f"The prediction is {much}. It is as good as the links that the topology gives; ",
                tag("code", "moesaic doctor --calibrate"),
                " measures those of a machine.",
            )
        )
    planned = ((found or {}).get("recv") or {}).get("bytes_of_gpu")
    if planned is not None:
        lines.append(tag("p", bytes_said(planned, execution)))
    lines.append(rates(execution))
    return join(*lines)


def off_by(foretold: float, took: float) -> str:
    """How far a prediction is off, in words."""
    ratio = foretold / took
    way = "much" if ratio > 1 else "little"
    if 0.5 <= ratio <= 2:
        return f"{abs(ratio - 1):.0%} too {way}" if abs(ratio - 1) >= 0.005 else "right"
    return f"{max(ratio, 1 / ratio):.3g} times too {way}"


def bytes_said(planned: list[int], execution: Execution) -> str:
    """Whether the ranks received what the plan says, in words."""
    counted = execution.received_bytes
    if planned == counted:
        return f"Every rank received the bytes that were planned: {bytes_text(sum(counted))} in all, {bytes_text(max(counted, default=0))} the busiest."
    differ = [rank for rank, pair in enumerate(zip(planned, counted, strict=False)) if pair[0] != pair[1]]
    why = (
        f" {execution.first} {'batch' if execution.first == 1 else 'batches'} had been committed by an earlier run."
        if execution.first
        else ""
    )
    ranks = ", ".join(map(str, differ[:SHOWN])) + (" …" if len(differ) > SHOWN else "")
    return (
        f"Received {bytes_text(sum(counted))}, where {bytes_text(sum(planned))} were planned; "
        f"they differ on {count(len(differ), 'rank')}: {ranks}.{why}"
    )


def rates(execution: Execution) -> Html:
    rows: list[tuple[str, str]] = [
        ("ranks", f"{execution.ranks} on {count(execution.hosts, 'host')}, {execution.device}, {execution.backend}"),
        ("executor", f"{execution.executor}, weights: {execution.weights}"),
        (
            "into the busiest rank",
            f"{execution.effective_gb_per_s:.3g} GB/s, {share(execution.link_efficiency)} of the link",
        ),
        ("the link alone, same run", f"{execution.link_gb_per_s:.3g} GB/s"),
        ("staging a rank", bytes_text(execution.staging_bytes)),
    ]
    if execution.peak_bytes:
        rows.append(("most memory beside the weights", f"{bytes_text(execution.peak_bytes)} a rank, measured"))
    if execution.batches:
        again = f", {execution.resent} sent again" if execution.resent else ""
        rows.append(("batches committed", f"{execution.committed} of {execution.batches}{again}"))
    rows += [(f"slowest rank: {what}", seconds(took)) for what, took in execution.split.items()]
    return table(("", ""), list(rows))


def held(found: Holdings) -> Html:
    """Where an update ended before its time: who committed how much, and what is lost."""
    steps = [n for n in found.committed if n is not None]
    least, most = (min(steps), max(steps)) if steps else (0, 0)
    done = f"{least}" if least == most else f"{least} to {most}"
    lines = [f"{done} of {found.batches} batches were committed on each rank whose journal can be seen."]
    if found.lost_ranks:
        lines.append(f"Lost with what they held: rank {', '.join(map(str, found.lost_ranks))}.")
    if found.nowhere:
        first = ", ".join(f"layer {layer} expert {expert}" for layer, expert in found.nowhere[:SHOWN])
        lines.append(
            f"Held nowhere: {count(len(found.nowhere), 'expert')}: {first}{' …' if len(found.nowhere) > SHOWN else ''}."
        )
    else:
        lines.append("Every logical expert is held somewhere.")
    if found.checked:
        lines.append(
            f"{found.checked:,} checksums of slots were compared with what the map says, {len(found.wrong):,} differ."
        )
    return join(
        tag("h3", "What the slots hold now"),
        tag("ul", *(tag("li", line) for line in lines)),
        tag("p", "update/journal.json has the map; place.current takes it."),
    )
