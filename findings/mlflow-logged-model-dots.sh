#!/usr/bin/env bash
# MLflow 3.17.2.
# A registered model may have a dot in its name, a logged model may not. A run that names its adapter after the model it
# will become ("support-2.1") ends in an error when it uploads, after the training.
# Seen on 2026-11-30:
#   create_registered_model("support-2.1"): made
#   create_logged_model(name="support-2.1"): MlflowException, INVALID_PARAMETER_VALUE
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2
cd "$scratch"
"$scratch/venv/bin/python" - <<'PYTHON'
import logging

import mlflow
from mlflow.exceptions import MlflowException

logging.disable(logging.CRITICAL)
assert mlflow.__version__ == "3.17.2", mlflow.__version__
client = mlflow.MlflowClient(tracking_uri="sqlite:///mlflow.db", registry_uri="sqlite:///mlflow.db")
print("create_registered_model:", client.create_registered_model("support-2.1").name, "made")
try:
    client.create_logged_model("0", name="support-2.1")
except MlflowException as error:
    assert error.error_code == "INVALID_PARAMETER_VALUE", error.error_code
    print("create_logged_model: MlflowException,", error.error_code, error.message)
else:
    raise SystemExit("create_logged_model takes the dot, which it did not")
PYTHON
