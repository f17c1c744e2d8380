"""From a recipe to an MLflow run that holds an adapter; imports registry, knows nothing of serving."""

import logging

# On some processors it recommends a package that would fetch code from the Hub and run it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
