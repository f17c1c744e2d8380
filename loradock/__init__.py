"""The life of a LoRA adapter in one tool.

`loradock.registry`, `.trainer` and `.serving` are the directories of these names beside this one.
"""
