"""Many runs at once, each a process of its own with a sweep above it, from one that has imported everything:

python -m tests.pipeline.many_runs FOLDER URI EXPERIMENT N
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import alembic.command  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import sqlalchemy.dialects.postgresql  # noqa: F401

from pipeline.lifecycle import birth_tags
from tests.pipeline.conftest import Toy


def main() -> int:
    folder, uri, experiment, count = sys.argv[1:]
    ready, go = os.pipe()
    children = []
    for number in range(int(count)):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(go)
                os.read(ready, 1)  # until all are there
                toy = Toy(Path(folder), uri, experiment)
                toy.parent = toy.store.start(f"sweep {number}", {"kind": "sweep", **birth_tags(15)})
                toy(f"seed={number % 4}", directory=Path(folder) / f"run{number}")
                toy.store.finish(toy.parent, "FINISHED")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    os.close(go)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


if __name__ == "__main__":
    sys.exit(main())
