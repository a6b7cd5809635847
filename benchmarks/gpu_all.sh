#!/bin/bash
# Build, test, time and sanitize the shipped pairs on a GPU; logs go to the folder $1.
cd "$(dirname "$0")/../.." || exit 2
out=${1:?folder for the logs}
export PYTHONUNBUFFERED=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} MAX_JOBS=2
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 -c 'import torch; print("torch", torch.__version__)'
echo "== build"
for pair in solutions/*/solution.py; do
  ( start=$(date +%s)
    python3 -c "import runpy; runpy.run_path('$pair')" >"$out/build.$(basename "$(dirname "$pair")").log" 2>&1
    echo "$pair rc $? in $(($(date +%s) - start)) s" ) &
done
wait
echo "== tests"
timeout 200 python3 -m pytest tests/pairs -m gpu -q --maxfail=15 --durations=5 >"$out/tests.log" 2>&1
tail -40 "$out/tests.log"
echo "== times"
timeout 100 python3 benchmarks/bench_pairs.py 2>&1 | tee "$out/times.log"
echo "== sanitizer"
for tool in memcheck racecheck synccheck initcheck; do
  timeout 150 compute-sanitizer --tool $tool python3 benchmarks/bench_pairs.py --exercise \
    >"$out/$tool.log" 2>&1 &
done
wait
tail -n 3 "$out"/*check.log
