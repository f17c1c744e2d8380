"""From a version and held-out rows to evidence in MLflow: what it says, beside the incumbent and the bare base."""
