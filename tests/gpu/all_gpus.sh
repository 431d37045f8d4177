#!/usr/bin/env bash
# bash tests/gpu/all_gpus.sh OUT [SECTION...]
#
# What there is to know of a host with many GPUs, in the folder OUT: the GPU tests (sections `tests` and `faults`), the
# update by executor, transport, policy and staging (`qwen3`, `deepseek`), and whole runs (`run`, where Hydra and MLflow
# are installed). Ends with a line for each section and the tables.
set -uo pipefail
out=$(realpath -m "$1")
shift
sections=("$@")
[ ${#sections[@]} -gt 0 ] || sections=(tests faults qwen3 deepseek run)
cd "$(dirname "$0")/../.."
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 NCCL_NVLS_ENABLE=0
python=${PYTHON:-python3}
gpus=$(nvidia-smi --list-gpus | wc -l)
nodes=$((gpus < 4 ? gpus : 4))  # to count the ranks to, so that most experts cross
said=()

tests() { "$python" -m pytest -q -rs tests/gpu/test_update_nccl.py; }
faults() { "$python" -m pytest -q -rs tests/gpu/test_faults_nccl.py -k "many"; }
update() { "$python" -m tests.bench.bench_update --loads gpt_oss --policy direct relay --out "$out/$section.md" "$@"; }
qwen3() { update --model "qwen3_235b_a22b:${LAYERS:-fit}" --nodes 1 2 --staging-mib 1024 256 --repeats 2; }
deepseek() { update --model "deepseek_v3:${LAYERS:-fit}" --redundant 32 --nodes "$nodes" --staging-mib 1024 256 --repeats 2; }
run() {
    for model in qwen3_235b_a22b deepseek_v3; do
        (cd "$(mktemp -d)" && "$python" -m pipeline.cli run "model=$model" ${LAYERS:+model.layers=$LAYERS} topology.nodes=2 \
            topology.gpus_per_node=$((gpus / 2)) collect=synthetic place.redundant_experts=32 &&
            cp "$(find . -name report.html | head -1)" "$out/$model.html") || return
    done
}

for section in "${sections[@]}"; do
    began=$SECONDS
    ("$section") >"$out/$section.log" 2>&1
    said+=("$section: exit $? after $((SECONDS - began)) s; $(grep -E "passed|failed|skipped|Verdict|Error" "$out/$section.log" | tail -2 | tr '\n' ' ')")
done
cat "$out"/*.md 2>/dev/null | grep -E '^(\||#|[0-9])'
printf '%s\n' "${said[@]}"
