"""From a recipe to an MLflow run that holds an adapter; imports registry, knows nothing of serving.

The names in `__all__` are the stable ones, for notebooks and scripts; each is imported when it is first asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if __name__ != "loradock.trainer":  # a module under two names is two modules, with two of each class
    raise ImportError("this package is loradock.trainer; import it by that name")

if TYPE_CHECKING:
    from loradock.trainer.data import load as load_data
    from loradock.trainer.dialects import load as load_recipe
    from loradock.trainer.evaluation.metrics import parse as parse_metrics
    from loradock.trainer.evaluation.run import evaluate
    from loradock.trainer.evaluation.task import Task as EvaluationTask
    from loradock.trainer.evaluation.task import prepare as prepare_evaluation
    from loradock.trainer.run import train
    from loradock.trainer.weights.convert import Task as ConvertTask
    from loradock.trainer.weights.convert import convert
    from loradock.trainer.weights.fold import Task as MergeTask
    from loradock.trainer.weights.fold import merge

__all__ = [
    "ConvertTask",
    "EvaluationTask",
    "MergeTask",
    "convert",
    "evaluate",
    "load_data",
    "load_recipe",
    "merge",
    "parse_metrics",
    "prepare_evaluation",
    "train",
]

if not TYPE_CHECKING:  # a type checker shall still tell of names that are not there
    from loradock.registry.lazy import lazily

    HOMES = {
        "load_data": "loradock.trainer.data:load",
        "load_recipe": "loradock.trainer.dialects:load",
        "parse_metrics": "loradock.trainer.evaluation.metrics:parse",
        "evaluate": "loradock.trainer.evaluation.run",
        "EvaluationTask": "loradock.trainer.evaluation.task:Task",
        "prepare_evaluation": "loradock.trainer.evaluation.task:prepare",
        "train": "loradock.trainer.run",
        "ConvertTask": "loradock.trainer.weights.convert:Task",
        "convert": "loradock.trainer.weights.convert",
        "MergeTask": "loradock.trainer.weights.fold:Task",
        "merge": "loradock.trainer.weights.fold",
    }
    __getattr__, __dir__ = lazily(__name__, HOMES)

# On some processors it recommends a package that would fetch code from the Hub and run it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
