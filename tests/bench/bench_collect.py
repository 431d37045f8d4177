"""How much memory and time reading large dumps takes: python -m tests.bench.bench_collect [MiB]

Each format is read in a process of its own; what it needs beyond the imports is compared with the file's size.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.stages.collect import engine_files as files

LAYERS, EXPERTS, SLOTS, WINDOW = 58, 256, 288, 512
CHILD = """
import resource, sys, time
from pathlib import Path
import numpy as np, pyarrow.csv, pyarrow.parquet, safetensors.numpy, torch, ijson
from stages.collect.sources import open_source
from stages.collect.validate import Wanted, check
from stages.errors import BadInput
from tests.stages.collect.helpers import model
spec = model(LAYERS, EXPERTS)
def most():  # and not ru_maxrss, which a process takes over from the one that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
held, before = most(), resource.getrusage(resource.RUSAGE_SELF)
load = check(open_source("auto", Path(sys.argv[1]), spec, None, strict=True), spec, Wanted(window=WINDOW)).load
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
print(most() - held, seconds, load.windows, load.logical_count.sum())
"""


def measure(path: Path) -> tuple[float, float, int, int]:
    """MiB beyond what was in use before, CPU seconds, windows, and the sum of all counts."""
    code = CHILD.replace("LAYERS", str(LAYERS)).replace("EXPERTS", str(EXPERTS)).replace("WINDOW", str(WINDOW))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    mib, seconds, windows, total = done.stdout.split()
    return float(mib), float(seconds), int(windows), int(total)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def write(name: str, path: Path, nbytes: int) -> int:
    """A file of about `nbytes`; the sum of its counts."""
    rng = np.random.default_rng(0)
    if name.endswith(".pt"):
        count = rng.integers(0, 99, (nbytes // (LAYERS * EXPERTS * 4), LAYERS, EXPERTS), dtype=np.int32)
        files.write_stat(path, count)
        return int(count.sum())
    if name in ("npy", "npz", "safetensors"):
        count = rng.integers(0, 99, (nbytes // (LAYERS * EXPERTS * 4), LAYERS, EXPERTS), dtype=np.int32)
        if name == "npy":
            np.save(path, count)
        elif name == "npz":
            np.savez(path, logical_count=count)
        else:
            from safetensors.numpy import save_file

            save_file({"logical_count": count}, path)
        return int(count.sum())
    if name == "passes":
        path.mkdir()
        expert_map = files.some_map(LAYERS, EXPERTS, SLOTS, rng)
        parts = [
            rng.integers(0, 99, (nbytes // (4 * LAYERS * SLOTS * 4), LAYERS, SLOTS), dtype=np.int32) for _ in range(4)
        ]
        files.write_passes(path, parts, expert_map)
        return int(sum(part.sum(dtype=np.int64) for part in parts))
    if name == "trtllm":
        path.mkdir()
        parts = [
            rng.integers(0, 99, (nbytes // (2 * LAYERS * EXPERTS * 4), LAYERS, EXPERTS), dtype=np.int32) for _ in "12"
        ]
        files.write_trtllm(path, parts, list(range(LAYERS)), top_k=1)
        return int(sum(part.sum(dtype=np.int64) for part in parts))
    return _texts(name, path, nbytes, rng)


def _texts(name: str, path: Path, nbytes: int, rng: np.random.Generator) -> int:
    total = 0
    expert_map = files.some_map(LAYERS, EXPERTS, SLOTS, rng)
    with path.open("w") as stream:
        if name == "csv":
            stream.write("window,layer,expert,count\n")
        if name == "json":
            stream.write('{"load_history": [')
        step = 0
        while stream.tell() < nbytes:
            count = rng.integers(0, 99, (LAYERS, SLOTS if name == "jsonl" else EXPERTS))
            total += int(count.sum())
            if name == "jsonl":
                stream.write(files.vllm_line(step, count, expert_map))
            elif name == "json":
                stream.write(f'{", " if step else ""}{{"logical_expert_load": {count.tolist()}}}')
            else:
                layer, expert = np.indices(count.shape)
                rows = np.stack([np.full(count.size, step), layer.ravel(), expert.ravel(), count.ravel()], axis=1)
                stream.write("".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows.tolist()))
            step += 1
        if name == "json":
            stream.write("]}")
    return total


def main() -> None:
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print(f"{'format':<14}{'file':>9}{'memory':>9}{'of file':>9}{'CPU':>8}{'windows':>9}")
    for name in sys.argv[2:] or ("stat.pt", "passes", "trtllm", "jsonl", "npy", "npz", "safetensors", "csv", "json"):
        folder = Path(tempfile.mkdtemp(prefix="moesaic-bench-"))
        path = folder / (name if name in ("passes", "trtllm", "stat.pt") else f"loads.{name}")
        total = write(name, path, mebibytes << 20)
        size = size_of(path) / (1 << 20)
        mib, seconds, windows, found = measure(path)
        assert found == total, (name, found, total)
        print(f"{name:<14}{size:>5.0f} MiB{mib:>5.0f} MiB{mib / size:>9.2f}{seconds:>6.1f} s{windows:>9}")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
