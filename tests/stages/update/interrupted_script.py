"""A program that runs ranks which never end by themselves: tests stop it from outside.

python -m tests.stages.update.interrupted_script RANKS
"""

from __future__ import annotations

import multiprocessing
import signal
import sys

from stages.update.launch import launch
from stages.update.progress_board import Phase, Report
from tests.stages.update.rank_entries import wait_in_layer


def main(ranks: int) -> int:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def on_report(report: Report) -> None:
        if report.phase == Phase.update:
            print("in layer", report.step, flush=True)

    try:
        launch(wait_in_layer, (7,), ranks, on_report=on_report)
    except KeyboardInterrupt:
        print("interrupted, children left:", len(multiprocessing.active_children()), flush=True)
    except SystemExit:
        print("terminated, children left:", len(multiprocessing.active_children()), flush=True)
    same = handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    print("handlers kept:", same, flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests behind it
    sys.exit(main(int(sys.argv[1])))
