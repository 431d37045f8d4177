"""The first two sections: what was asked, and what was found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.report.markup import Html, join, table, tag
from pipeline.report.material import Material
from pipeline.report.units import bytes_text, count, seconds

STATES = {"ran": "✓ ran", "cached": "↺ cached", "skipped": "– skipped", "failed": "✕ failed"}

SOURCES = {
    "sample": ("sample",),
    "synthetic": ("distribution", "windows", "tokens"),
    "transformers": ("model",),
    "sglang_server": ("url",),
}
"""What of a source of loads says which it is; of any other one, its path."""


def title(asked: Mapping[str, Any]) -> str:
    """Model and GPUs."""
    model, topology = asked.get("model"), asked.get("topology")
    parts = [str(_of(model, "name") or ""), _gpus(topology)]
    return " on ".join(part for part in parts if part) or "moesaic run"


def asked(material: Material) -> Html:
    origin = material.origin
    command = shlex.join(["moesaic", "run", *origin.overrides])
    rows = tag("dl", *(join(tag("dt", name), tag("dd", said)) for name, said in asked_rows(origin.asked) if said))
    return join(tag("pre", command, class_="command"), rows)


def asked_rows(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of the config decides most, in words; what the config does not have is left out."""
    group = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    model, topology, collect = (group.get(name, {}) for name in ("model", "topology", "collect"))
    place, plan, update, run = (group.get(name, {}) for name in ("place", "plan", "update", "run"))
    links = _of(topology, "links")
    within, between = _of(_of(links, "within_node"), "gb_per_s"), _of(_of(links, "between_nodes"), "gb_per_s")
    speed = f"{within:g} GB/s within a node, {between:g} GB/s between nodes" if within and between else ""
    span = [run.get("first"), run.get("last")] if not run.get("only") else [run["only"]] * 2
    stages = f"{span[0] or 'the first'} to {span[1] or 'the last'}" if any(span) else "all"
    forced = f"; made anew: {', '.join(map(str, run['force']))}" if run.get("force") else ""
    return [
        ("Model", _listed(_of(model, "name"), _counted(model, "layers", "MoE layer"), _counted(model, "experts", "expert"), _scale(model))),
        ("Loads", _listed(*_loads(collect), *_named(collect, "label", "window"))),
        ("GPUs", _listed(_gpus(topology), _topology(topology), speed)),
        ("Placement", _listed(_of(place, "algorithm"), _counted(place, "redundant_experts", "redundant expert", "a layer"), *_named(
            place, "path", "current", "target_balancedness", "max_moved_bytes", "max_moved_slots", "ranks", "lost_ranks"))),
        ("Plan", _listed(_of(plan, "policy"))),
        ("Update", _listed(_of(update, "executor"), *_named(update, "backend", "weights"), _staging(update))),
        ("Stages", stages + forced if run or group else ""),
    ]  # fmt: skip


def found(material: Material) -> Html:
    return join(banner(material), tiles(material), stage_table(material))


def banner(material: Material) -> Html:
    summary = material.summary
    done = [name for name, state in summary.stages.items() if state.state in ("ran", "cached")]
    style, head, more = {
        "verified": ("good", "Verified", "every byte is where it belongs."),
        "done": ("fine", "Done", f"up to {done[-1]}: all that was asked for." if done else "all that was asked for."),
    }.get(summary.status, ("bad", "Failed", summary.cause or "the cause is not known."))
    icon = {"good": "✓", "fine": "✓", "bad": "✕"}[style]
    return tag("p", tag("b", f"{icon} {head}"), f": {more}", class_=f"banner {style}", role="status")


def tiles(material: Material) -> Html | None:
    """The few numbers that matter most, as large as they deserve."""
    get = material.metric
    shown: list[tuple[str, str, str]] = []
    before, after, worst = (get(f"place.balancedness{end}") for end in ("_before", "", "_worst_layer"))
    if before is not None and after is not None and worst is not None:
        gap = get("place.optimality_gap")
        room = f"; at most {gap:.2%} above the bound" if gap is not None else ""
        shown.append(("Balancedness", f"{before:.4f} → {after:.4f}", f"1 is perfect; worst layer {worst:.4f}{room}"))
    if (moved := get("place.moved_slots")) is not None:
        shown.append(("Slots that change GPU", f"{moved:,.0f}", "an expert that its GPU did not hold"))
    if (nbytes := get("plan.moved_bytes")) is not None:
        cross = get("plan.cross_node_bytes")
        crossing = f"{bytes_text(cross)} of the traffic crosses between nodes" if cross is not None else ""
        shown.append(("Moved", bytes_text(nbytes), crossing))
    predicted, took = get("plan.predicted_seconds"), get("update.update_seconds")
    if took is not None:
        shown.append(("Update", seconds(took), f"predicted {seconds(predicted)}" if predicted is not None else ""))
    elif predicted is not None:
        shown.append(("Predicted update", seconds(predicted), "on the links of the topology"))
    if (compared := get("verify.checksums_compared")) is not None:
        wrong = get("verify.mismatches") or 0
        shown.append(("Checksums", f"{compared:,.0f}", f"compared, {wrong:,.0f} wrong"))
    if not shown:
        return None
    return tag(
        "div",
        *(tag("div", tag("span", a), tag("strong", b), tag("small", c), class_="tile") for a, b, c in shown),
        class_="tiles",
    )


def stage_table(material: Material) -> Html | None:
    rows: list[tuple[str | Html, ...]] = []
    for name, state in material.summary.stages.items():
        word = tag("span", STATES.get(state.state, state.state), class_=f"state {state.state}")
        rows.append((name, word, seconds(state.seconds) if state.seconds else "", state.why, (state.run_id or "")[:8]))
    if not rows:
        return tag("p", "No stage was reached.")
    return table(("stage", "state", "took", "why", "made by run"), list(rows), numbers=(2,))


def _of(group: Any, key: str) -> Any:
    return group.get(key) if isinstance(group, Mapping) else None


def _gpus(topology: Any) -> str:
    nodes, each = _of(topology, "nodes"), _of(topology, "gpus_per_node")
    return f"{nodes} × {each} GPUs" if nodes and each else ""


def _topology(topology: Any) -> str:
    """The name of the topology, but for one that only says how many nodes and GPUs there were before overrides."""
    name = str(_of(topology, "name") or "")
    return "" if re.fullmatch(r"\d+x\d+", name) else name


def _listed(*parts: object) -> str:
    return " · ".join(str(part) for part in parts if part not in (None, "", []))


def _named(group: Any, *keys: str) -> list[str]:
    return [f"{key.replace('_', ' ')} {value}" for key in keys if (value := _of(group, key)) not in (None, "", [])]


def _counted(group: Any, key: str, what: str, more: str = "") -> str | None:
    number = _of(group, key)
    return f"{count(number, what)} {more}".strip() if isinstance(number, int) else None


def _scale(model: Any) -> str | None:
    scale = _of(model, "scale")
    return f"tensors scaled to {scale:.3%}" if isinstance(scale, int | float) and scale != 1 else None


def _loads(collect: Any) -> list[str]:
    """The source, and what says which it is."""
    source = str(_of(collect, "source") or "")
    known = _named(collect, *SOURCES.get(source, ("path",)))
    return known if source == "sample" else [source, *known]


def _staging(update: Any) -> str | None:
    mib = _of(update, "staging_mib")
    return f"staging {mib:g} MiB" if isinstance(mib, int | float) else None
