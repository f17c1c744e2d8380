"""From a recipe to an MLflow run that holds an adapter; imports registry, knows nothing of serving."""

import logging

if __name__ != "loradock.trainer":  # a module under two names is two modules, with two of each class
    raise ImportError("this package is loradock.trainer; import it by that name")

# On some processors it recommends a package that would fetch code from the Hub and run it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
