"""From a recipe to an MLflow run that holds an adapter; imports registry, knows nothing of serving.

The names in `__all__` are the stable ones, for notebooks and scripts; each is imported when it is first asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.data import load as load_data
    from trainer.dialects import load as load_recipe
    from trainer.evaluation.metrics import parse as parse_metrics
    from trainer.evaluation.run import evaluate
    from trainer.evaluation.task import Task as EvaluationTask
    from trainer.evaluation.task import prepare as prepare_evaluation
    from trainer.run import train
    from trainer.weights.convert import Task as ConvertTask
    from trainer.weights.convert import convert
    from trainer.weights.fold import Task as MergeTask
    from trainer.weights.fold import merge

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
    from registry.lazy import lazily

    HOMES = {
        "load_data": "trainer.data:load",
        "load_recipe": "trainer.dialects:load",
        "parse_metrics": "trainer.evaluation.metrics:parse",
        "evaluate": "trainer.evaluation.run",
        "EvaluationTask": "trainer.evaluation.task:Task",
        "prepare_evaluation": "trainer.evaluation.task:prepare",
        "train": "trainer.run",
        "ConvertTask": "trainer.weights.convert:Task",
        "convert": "trainer.weights.convert",
        "MergeTask": "trainer.weights.fold:Task",
        "merge": "trainer.weights.fold",
    }
    __getattr__, __dir__ = lazily(__name__, HOMES)

# On some processors it recommends a package that would fetch code from the Hub and run it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
