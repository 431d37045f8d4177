"""What an update in the background costs a model: a loop of matrix products beside it, and the wait at each commit.

PYTHONPATH=. python -m tests.bench.bench_background --model qwen3_30b_a3b:24
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from stages.update.launch import launch
from tests.bench.background_ranks import measure
from tests.gpu.models import read_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3_30b_a3b:24")
    parser.add_argument("--staging-mib", type=float, default=1024)
    parser.add_argument("--products", type=int, default=32, help="matrix products between two calls")
    options = parser.parse_args()
    name, _, layers = options.model.partition(":")
    model = read_model(name, int(layers) if layers else None, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found"
        launch(measure, (model, options.staging_mib, options.products, found), 2, backend="nccl")
        for key, value in json.loads(found.read_text()).items():
            print(f"{key:44} {value}")


if __name__ == "__main__":
    main()
