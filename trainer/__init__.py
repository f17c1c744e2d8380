"""From a recipe to an MLflow run that holds an adapter; imports registry, knows nothing of serving."""
