"""`moesaic` whose ranks come to grief: local ones that it starts, or itself as one that torchrun has started.

python -m tests.pipeline.troubled WHAT WHO BATCH run [overrides]
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.cli import main
from stages.update import session, worker
from tests.stages.update.trouble import HOOKS, Trouble, troubled_update


def bring(trouble: Trouble) -> None:
    """From now on updates of this process have this trouble."""
    worker.save_update = functools.partial(troubled_update, trouble=trouble, left=Path.cwd())
    if os.environ.get("RANK") == str(trouble.who):
        update_rank = session.update_rank

        def troubled(rank: Any, *args: Any) -> Any:
            return update_rank(rank, *args, HOOKS[trouble.what](rank, trouble, []))

        session.update_rank = troubled


if __name__ == "__main__":
    bring(Trouble(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    sys.exit(main(sys.argv[4:]))
