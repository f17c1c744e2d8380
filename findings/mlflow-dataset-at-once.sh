#!/usr/bin/env bash
# MLflow 3.17.2.
# Two runs of one experiment that log the same dataset in the same moment: one of the two calls is refused, although each
# is valid alone and also valid again afterwards. MLflow looks for the dataset's row, and adds it where there is none; the
# second row breaks the table's primary key. A sweep that starts its trainings at once loses one before its first step.
# Seen on 2026-11-30, eight processes and a store in SQLite (seen on PostgreSQL behind a server, too):
#   refused within the first rounds: MlflowException, BAD_REQUEST, UNIQUE constraint failed: datasets...; again: logged
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2
cd "$scratch"
cat > at_once.py <<'PYTHON'
import logging
import multiprocessing

import mlflow
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException

URI, ROUNDS, PROCESSES = "sqlite:///mlflow.db", 60, 8


def log(barrier, refused):
    logging.disable(logging.CRITICAL)
    client = mlflow.MlflowClient(tracking_uri=URI)
    run = client.create_run("0").info.run_id
    for number in range(ROUNDS):
        inputs = [DatasetInput(Dataset(f"rows-{number}.jsonl", "digest", "local", "{}"))]
        barrier.wait(60)
        try:
            client.log_inputs(run, inputs)
        except MlflowException as error:
            if "UNIQUE" in str(error):
                client.log_inputs(run, inputs)
                refused.put((number, error.error_code, str(error).splitlines()[0]))


if __name__ == "__main__":
    assert mlflow.__version__ == "3.17.2", mlflow.__version__
    mlflow.MlflowClient(tracking_uri=URI).create_run("0")
    context = multiprocessing.get_context("spawn")
    barrier, refused = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=log, args=(barrier, refused)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, process.exitcode
    if refused.empty():
        raise SystemExit(f"no call was refused in {ROUNDS} rounds of {PROCESSES}")
    number, code, said = refused.get()
    assert code == "BAD_REQUEST", code
    print(f"round {number}: MlflowException, {code}, {said}; again: logged")
PYTHON
"$scratch/venv/bin/python" at_once.py
