"""Where a run came from, and every number it has: config, code, data, machine, and each stage's files by digest."""

from __future__ import annotations

import base64
from pathlib import Path

from pipeline.keys import Manifest
from pipeline.report.markup import Child, Html, join, table, tag
from pipeline.report.material import Material
from pipeline.report.units import metric, seconds
from stages import paths

DRAWN = {"gpu_load", "replicas", "expert_load", "skew", "traffic", "layers", "timeline"}
"""Figures that the report draws itself."""
KNOWN = {paths.LOAD, paths.PLACEMENT, paths.TRAFFIC, paths.EXECUTION, paths.VERDICT}
"""Files of stages that the report has sections about."""
MOST_PICTURE_BYTES = 1_000_000


def provenance(material: Material) -> Html:
    origin, summary = material.origin, material.summary
    git = origin.git
    code = (
        f"commit {git['commit']}{' with changes that are not committed' if git.get('dirty') else ''}"
        if git
        else "an installed package"
    )
    facts: list[tuple[str, Child]] = [
        ("Run", tag("code", summary.run_id or "not recorded")),
        ("Report written", origin.written),
        ("Code", tag("code", code)),
        *((name.capitalize(), str(value)) for name, value in origin.machine.items() if name != "packages"),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in (origin.machine.get("packages") or {}).items())
    facts.append(("Packages", versions))
    stages = [stage(name, manifest) for name, manifest in material.manifests.items()]
    return join(
        tag("dl", *(join(tag("dt", name), tag("dd", said)) for name, said in facts if said)),
        digests(material),
        tag("p", f"Not shown, as it could not be read: {'; '.join(material.unread)}.") if material.unread else None,
        *stages,
        folded("All numbers", numbers(material)),
        folded("Config, with all defaults", tag("pre", origin.config)) if origin.config else None,
    )


def digests(material: Material) -> Html | None:
    """What the stages read from outside: no stage of this run made it."""
    made = {digest for manifest in material.manifests.values() for digest in manifest.outputs.values()}
    rows = [
        (stage, name, tag("code", digest))
        for stage, manifest in material.manifests.items()
        for name, digest in manifest.inputs.items()
        if digest not in made
    ]
    return join(tag("h3", "Data"), table(("read by", "input", "SHA-256 of its content"), list(rows))) if rows else None


def stage(name: str, manifest: Manifest) -> Html:
    facts = [
        ("key", manifest.key), ("code", manifest.code_digest), ("begun", manifest.started), ("took", seconds(manifest.seconds)),
        ("commit", str(manifest.git.get("commit", "")) + (" (changed)" if manifest.git.get("dirty") else "")),
        *((f"environment: {key}", str(value)) for key, value in manifest.environment.items()),
        *((f"input: {key}", digest) for key, digest in manifest.inputs.items()),
        *((f"file: {key}", digest) for key, digest in manifest.outputs.items()),
    ]  # fmt: skip
    return folded(
        f"Stage {name}: key and files", table(("", ""), [(key, tag("code", value)) for key, value in facts if value])
    )


def numbers(material: Material) -> Html:
    rows = [
        (f"{stage}.{name}", f"{value:.10g}")
        for stage, state in material.summary.stages.items()
        for name, value in state.metrics.items()
    ]
    return table(("metric", "value"), list(rows), numbers=(1,)) if rows else tag("p", "None were reported.")


def others(material: Material) -> Html | None:
    """Of the stages: the numbers of those that no section is about, such as one that a pipeline has added, and the figures
    that no section draws."""
    shown: list[Html | None] = []
    room = MOST_PICTURE_BYTES
    for name, manifest in material.manifests.items():
        known = KNOWN & manifest.outputs.keys()
        metrics = material.summary.stages[name].metrics if name in material.summary.stages and not known else {}
        drawn = [
            picture(f"{name}: {file.stem.replace('_', ' ')}", file)
            for file in material.pictures.get(name, ())
            if file.stem not in DRAWN and (room := room - file.stat().st_size) >= 0
        ]
        if metrics or drawn:
            rows = [(key, metric(key, value)) for key, value in metrics.items()]
            shown.append(tag("h3", f"Stage {name}"))
            shown.append(tag("div", *drawn, class_="pair") if drawn else None)
            shown.append(table(("metric", "value"), list(rows), numbers=(1,)) if rows else None)
    return join(*shown) if shown else None


def picture(name: str, file: Path) -> Html:
    source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return tag("figure", tag("figcaption", name), tag("img", src=source, alt=name, class_="picture"))


def folded(title: str, body: Html) -> Html:
    return tag("details", tag("summary", title), body)
