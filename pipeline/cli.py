"""The command `moesaic`. Help must come at once, so everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import upkeep
from pipeline.addresses import CHOICES, EXPERIMENT, from_command_line
from stages.errors import BadInput, MoesaicError, sentence_of

if TYPE_CHECKING:
    from pipeline.store import Store

MAX_PORT = 65535
ENGINES = ("sglang", "vllm", "trtllm", "ascend", "omni")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; `arguments` default to the process's. The exit code (see the design: 0, 1, 2, 3)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (until the process ends)
    given = list(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(50_000, 20, 50)  # importing makes many objects that stay: collecting them costs a tenth of it
    if given[:1] == ["run"]:  # Hydra parses what follows, flags included
        from pipeline.app import run

        return run(given[1:])
    options = _parser().parse_args(given)
    try:
        return int(options.command(options))
    except MoesaicError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        sys.stderr.write(f"{sentence_of(error)}\n")
        return 1
    except Exception as error:
        from pipeline.credentials import hidden
        from pipeline.outbox import is_outage

        if not is_outage(error):
            raise
        sys.stderr.write(f"The tracking store does not answer: {hidden(sentence_of(error))}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moesaic",
        description="Moves the experts of Mixture-of-Experts models to the GPUs where they are needed, "
        "and proves that every byte arrived.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the pipeline; takes Hydra overrides (model=deepseek_v3), -m sweeps")
    run.add_argument("overrides", nargs="*", help="for example: topology=h100_4x8 place.redundant_experts=32")
    run.set_defaults(command=lambda options: main(["run", *options.overrides]))

    status = commands.add_parser("status", help="runs and their stages: state, cached or not, key numbers")
    status.add_argument(
        "run", nargs="?", metavar="RUN", help="id of a run or a sweep, or its beginning (default: the latest runs)"
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("-n", type=_count, default=10, metavar="N", help="how many runs (default: 10)")
    status.add_argument("--watch", action="store_true", help="look again every second, until the run has ended")
    status.set_defaults(command=_status)

    export = commands.add_parser("export", help="write a run's placement in an engine's format")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--to", required=True, choices=ENGINES, help="the engine")
    export.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="sglang: .json or .pt, vllm: .jsonl, trtllm: .yaml, ascend: .json, omni: .npy",
    )
    export.add_argument(
        "--layer-updates-per-iter",
        type=_updates,
        default=0,
        metavar="N",
        help="trtllm: layers that it may balance anew in an iteration (default: 0, static)",
    )
    export.set_defaults(command=_export)

    ui = commands.add_parser("ui", help="the MLflow UI on the tracking store, on this machine alone")
    ui.add_argument("--port", type=_port, default=5000)
    ui.set_defaults(command=_ui)

    doctor = commands.add_parser("doctor", help="what this machine can run, what is missing, and how to get it")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--calibrate", nargs="?", const="conf/topology/measured.yaml", metavar="FILE",
        help="measure the links and write them as a topology (default: conf/topology/measured.yaml); on several hosts "
        "started by torchrun on each",
    )  # fmt: skip
    doctor.add_argument("--nodes", type=_count, metavar="N", help="to calibrate: how many nodes the ranks make up")
    doctor.add_argument("--gpus-per-node", type=_count, metavar="N", help="to calibrate: ranks of a node")
    doctor.add_argument("--backend", choices=["auto", "gloo", "nccl"], default="auto", help="to calibrate")
    doctor.set_defaults(command=_doctor)

    _add_completion(commands)
    audit, compare = _audit_parser(commands), _compare_parser(commands)
    for command in (status, export, ui, doctor, audit, compare, *upkeep.commands(commands)):
        command.add_argument("--tracking-uri", metavar="URI", help="the store (default: as `moesaic run` takes it)")
        command.add_argument(
            "--tracking", choices=CHOICES, default="default", help="which store, as `moesaic run tracking=…` finds it"
        )
        command.add_argument("--experiment", default=EXPERIMENT, help=f"the MLflow experiment (default: {EXPERIMENT})")
    return parser


def _add_completion(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    completion = commands.add_parser("completion", help='shell completion: eval "$(moesaic completion bash)"')
    what = completion.add_mutually_exclusive_group(required=True)
    what.add_argument("shell", nargs="?", choices=["bash", "zsh", "fish"], help="print what this shell evaluates")
    what.add_argument("--line", metavar="LINE", help="print what the last word of a command line may become")
    completion.set_defaults(command=_completion)


def _completion(options: argparse.Namespace) -> int:
    from pipeline.completion import SHELLS, words

    sys.stdout.write(
        SHELLS[options.shell] if options.shell else "".join(f"{w}\n" for w in words(options.line, _parser()))
    )
    return 0


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to {MAX_PORT}")
    return int(text)


def _audit_parser(commands: Any) -> argparse.ArgumentParser:
    audit: argparse.ArgumentParser = commands.add_parser(
        "audit", help="is a run still what it was, and do its files bear out what it says?"
    )
    audit.add_argument("run", metavar="RUN", help="a run or a sweep: its id or the beginning of it")
    audit.add_argument("--seal", metavar="DIGEST", help="the seal that you noted when it ended, or its beginning")
    audit.add_argument("--json", action="store_true", help="print JSON")
    audit.set_defaults(command=_audit)
    return audit


def _compare_parser(commands: Any) -> argparse.ArgumentParser:
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare", help="in what two runs differ: config, inputs, code, metrics, and which experts are where"
    )
    compare.add_argument("a", metavar="A", help="a run: its id or the beginning of it")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(command=_compare)
    return compare


def _compare(options: argparse.Namespace) -> int:
    from pipeline.compare import compare, render

    print(render(compare(_store(options), options.a, options.b), as_json=options.json))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from pipeline.audit import Tampered, audit, render

    report = audit(_store(options), options.run, options.seal)
    print(render(report, as_json=options.json))
    if report.findings:
        count = len(report.findings)
        raise Tampered(f"{count} finding{'s' if count > 1 else ''}; the first: {report.findings[0]}")
    return 0


def _count(text: str) -> int:
    if not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no whole number")
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and 1000")
    return value


def _updates(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def _status(options: argparse.Namespace) -> int:
    if options.watch:
        from pipeline.watch import watch

        return watch(_store(options), options.run, options.n, as_json=options.json)
    from pipeline.status import status

    print(status(_store(options), options.run, options.n, as_json=options.json))
    return 0


def _export(options: argparse.Namespace) -> int:
    from pipeline.export import export

    print(export(_store(options), options.run, options.to, Path(options.out), options.layer_updates_per_iter))
    return 0


def _ui(options: argparse.Namespace) -> int:
    from pipeline.ui import serve

    return serve(from_command_line(options.tracking_uri, options.tracking), options.experiment, options.port)


def _doctor(options: argparse.Namespace) -> int:
    if options.calibrate is not None:
        from pipeline.calibration import calibrate

        told = calibrate(Path(options.calibrate), options.nodes, options.gpus_per_node, options.backend)
        if told is not None:
            print(told)
        return 0
    if options.nodes or options.gpus_per_node:
        raise BadInput("--nodes and --gpus-per-node are for --calibrate: give it too.")
    from pipeline.doctor import examine, render

    findings = examine(from_command_line(options.tracking_uri, options.tracking))
    print(render(findings, as_json=options.json))
    return 0 if all(finding.ok for finding in findings if finding.needed) else 1


def _store(options: argparse.Namespace) -> Store:
    from pipeline.store import Store

    return Store(from_command_line(options.tracking_uri, options.tracking), options.experiment, create=False)


if __name__ == "__main__":
    sys.exit(main())
