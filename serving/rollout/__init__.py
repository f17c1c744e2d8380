"""From a canary's first share to production, or back: by what live answers show, and by nothing else.

`sequential` tests, `measures` and `blocks` say on what, `plan` decides; `watching` reads the replicas, `moves` writes
the registry, and `drive` does what was decided.
"""
