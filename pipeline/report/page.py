"""The page: its sections in their order, those that the run has something for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.report import experts, gpus, moves, opening, proof, provenance
from pipeline.report.markup import Html, join, tag, without_credentials
from pipeline.report.material import Material
from pipeline.report.style import CSS
from stages.errors import sentence_of

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser lets the page do: nothing is loaded, and nothing runs."""


UNMADE = "This section could not be made"


@dataclass(frozen=True)
class Section:
    """`body`: None where the run has nothing for it."""

    id: str
    title: str
    body: Callable[[Material], Html | None]


def _gpus_per_node(material: Material) -> int:
    topology = material.origin.asked.get("topology") or {}
    return int(topology.get("gpus_per_node") or 0) if (topology.get("nodes") or 1) > 1 else 0


def _heat(m: Material) -> Html | None:
    return gpus.heat_maps(m.balance, _gpus_per_node(m)) if m.balance else None


def _bars(m: Material) -> Html | None:
    return gpus.per_gpu(m.balance, _gpus_per_node(m)) if m.balance else None


def _timeline(m: Material) -> Html | None:
    drawn = moves.timeline(m.trace, m.execution) if m.trace else None
    held = moves.held(m.holdings) if m.holdings else None
    return join(drawn, held) if drawn or held else None


SECTIONS = (
    Section("asked", "What was asked", opening.asked),
    Section("found", "What was found", opening.found),
    Section("load", "GPU load before and after", _heat),
    Section("bound", "Load against the bound", _bars),
    Section("skew", "Expert skew", lambda m: experts.skew(m.load) if m.load else None),
    Section("replicas", "Replica counts", lambda m: experts.replicas(m.placement) if m.placement else None),
    Section("traffic", "Traffic between GPUs", lambda m: moves.traffic(m.traffic) if m.traffic else None),
    Section("timeline", "The update over time", _timeline),
    Section("predicted", "Predicted and measured", lambda m: moves.predicted(m.traffic, m.execution) if m.execution else None),
    Section("verdict", "Checksum verdict", lambda m: proof.verdict(m.verdict) if m.verdict else None),
    Section("engines", "Balance as each engine measures it", lambda m: gpus.engines(m.balance) if m.balance else None),
    Section("figures", "What else the stages found", provenance.others),
    Section("provenance", "Provenance", provenance.provenance),
)  # fmt: skip


def _body(section: Section, material: Material) -> Html | None:
    """One section that cannot be made does not take the others along."""
    try:
        return section.body(material)
    except Exception as error:  # the page tells what went wrong
        return tag("p", f"{UNMADE}: {sentence_of(error)}")


def page(material: Material) -> Html:
    """The whole report, as one file that needs no other."""
    found = [(section, body) for section in SECTIONS if (body := _body(section, material)) is not None]
    title = opening.title(material.origin.asked)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · moesaic"),
        tag("style", Html(CSS)),
    )
    run_id = (material.summary.run_id or "")[:8]
    top = tag("header", tag("h1", title), tag("p", f"moesaic report of run {run_id}, {material.origin.written}"))
    sections = (tag("section", tag("h2", section.title), body, id=section.id) for section, body in found)
    return without_credentials(
        "<!DOCTYPE html>\n" + tag("html", head, tag("body", top, tag("main", *sections)), lang="en") + "\n"
    )
