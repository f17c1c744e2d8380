#!/usr/bin/env bash
# Ray 2.60.0. Every actor, Ray Serve's replicas and proxies among them, runs at niceness 15, and what it starts inherits
# it: vLLM's engine in a replica comes after all else on the machine. RAY_worker_niceness=0 before Ray's start ends it.
# Seen on 2026-11-30, processor seconds in 10 s of wall on one core, beside one other process that computes:
#   an actor's child at niceness 15: 0.3; with RAY_worker_niceness=0: 5.0
# Two replicas of vLLM beside two other tests, which start in 90 s alone, were not there after ten minutes.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[serve]==2.60.0'
cd "$scratch"
cat > share.py <<'PYTHON'
import os
import subprocess
import sys
import time

import ray
from ray import serve

SPIN = "import os, time; os.sched_setaffinity(0, {%d})\nend = time.monotonic() + %d\nwhile time.monotonic() < end: pass\n"
TELL = "print(os.nice(0), time.process_time())"


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Replica:
    def __call__(self, core):
        child = subprocess.run([sys.executable, "-c", SPIN % (core, 10) + TELL], capture_output=True, text=True)
        return os.nice(0), *child.stdout.split()


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
handle = serve.run(Replica.bind(), logging_config={"log_level": "ERROR"})
core = min(os.sched_getaffinity(0))
other = subprocess.Popen([sys.executable, "-c", SPIN % (core, 60)])
own, below, seconds = handle.remote(core).result()
other.kill()
print("share", own, below, round(float(seconds), 1))
serve.shutdown()
PYTHON
run() { env RAY_ADDRESS=local RAY_USAGE_STATS_ENABLED=0 "$@" "$scratch/venv/bin/python" share.py 2>/dev/null | grep '^share '; }
read -r _ own below seconds < <(run)
read -r _ own0 below0 seconds0 < <(run RAY_worker_niceness=0)
echo "niceness of a replica $own, of its child $below, processor seconds in 10 s $seconds; with 0: $own0, $below0, $seconds0"
[[ $own == 15 && $below == 15 ]] || { echo "Ray begins its workers at another niceness"; exit 1; }
[[ $own0 == 0 && $below0 == 0 ]] || { echo "RAY_worker_niceness is not heeded"; exit 1; }
awk -v low="$seconds" -v own="$seconds0" 'BEGIN { exit !(low * 4 < own) }' || { echo "it costs no time"; exit 1; }
