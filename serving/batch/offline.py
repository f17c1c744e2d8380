"""vLLM without a server, in this process: a kill leaves nothing behind, and the same rows are scheduled alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loradock.registry import machine
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, LoradockError, NotServable, first_line
from loradock.registry.outside import printable
from loradock.registry.records import Version
from loradock.registry.reference import PROMPTS, Reference
from loradock.registry.refs import VersionRef
from loradock.serving import launch
from loradock.serving.batch.answering import Outcome, Unanswerable
from loradock.serving.batch.journal import Usage
from loradock.serving.batch.rows import Row
from loradock.serving.engine import misreading, precision
from loradock.serving.probe import Proof, Scored, is_clear, prove

_MOST_SLOTS: Final = 16
_MOST_KEPT: Final = 64
"""Adapters that stay in memory; what does not fit is read from disk when its rows come."""
_UNFINISHED: Final = ("abort", "error")


def boot(local: LocalBase, ranks: Sequence[int], *, max_loras: int | None, extra: Sequence[str]) -> Offline:
    """Load a base, ready for adapters of these ranks, one each; `extra` are arguments for vLLM, and win.

    Raises BadInput for arguments that vLLM does not take, and LoradockError where it is missing or does not start.
    """
    cpu = launch.on_cpu()
    launch.prepare(os.environ, cpu=cpu)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if cpu:
        from loradock.serving.cpu_ops import install

        install()
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    args = parsed([*arguments(local, ranks, max_loras, cpu=cpu), *extra], cpu=cpu)
    try:
        return Offline(LLM.from_engine_args(EngineArgs.from_cli_args(args)))
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise LoradockError(
            f"vLLM did not start: {printable(' '.join(str(error).split()), 600)}",
            hint="VLLM_LOGGING_LEVEL=INFO shows its own lines",
        ) from error


def parsed(words: Sequence[str], *, cpu: bool) -> Any:
    """Arguments as vLLM parses them; raises BadInput for those that it does not take, or not with adapters."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="loradock generate ... --", add_help=False))
    try:
        args = parser.parse_args(list(words))
    except SystemExit as error:
        raise BadInput("vLLM does not take these arguments", hint="the reason is in its log above") from error
    if args.enable_lora and (faults := misreading(args, cpu=cpu)):
        raise BadInput("vLLM's arguments do not fit loradock", problems=faults)
    return args


def arguments(local: LocalBase, ranks: Sequence[int], max_loras: int | None, *, cpu: bool) -> list[str]:
    """What vLLM is started with."""
    chosen = ["--model", str(local.path)]
    if ranks:
        slots = max_loras or min(len(ranks), _MOST_SLOTS)
        chosen += ["--enable-lora", "--max-lora-rank", str(launch.rank_limit(ranks))]
        chosen += ["--max-loras", str(slots), "--max-cpu-loras", str(max(slots, min(len(ranks), _MOST_KEPT)))]
    if cpu:
        # As long a context as the key-value cache holds; vLLM's own default stops the start when it does not fit.
        chosen += ["--max-model-len", "auto"]
        if not machine.has_bfloat16():
            chosen += ["--dtype", "float32"]
    return chosen


class Offline:
    """One `vllm.LLM`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        config = llm.llm_engine.vllm_config
        self.slots: int = config.lora_config.max_loras if config.lora_config else 0
        self.window: int = 2 * config.scheduler_config.max_num_seqs
        self._defaults: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self._loaded: dict[VersionRef, Any] = {}

    def load(self, version: Version, directory: Path, reference: Reference | None) -> None:
        """Load a version, and prove its effect and that it says what its reference says; None proves its effect alone.

        Raises NotServable. Given to a step unloaded, an adapter that vLLM refuses would end the engine.
        """
        from vllm.lora.request import LoRARequest

        name = str(version.ref)
        request = LoRARequest(lora_name=name, lora_int_id=len(self._loaded) + 1, lora_path=str(directory))
        self._loaded[version.ref] = request
        try:
            loaded = self._llm.llm_engine.add_lora(request)
        except Exception as error:
            raise NotServable(name, [f"vLLM cannot load it: {printable(first_line(error))}"]) from error
        if not loaded:
            raise NotServable(name, ["vLLM did not load it"])
        if fault := self._proof(request, reference).fault:
            raise NotServable(name, [fault])

    def _proof(self, request: Any, reference: Reference | None) -> Proof:
        """As a replica proves it."""
        tokenizer = self._llm.get_tokenizer()
        asked: list[Sequence[int]] = (
            [probe.tokens for probe in reference.probes]
            if reference
            else [tokenizer.encode(prompt) for prompt in PROMPTS]
        )
        base, found = ([self._scores(tokens, who) for tokens in asked] for who in (None, request))
        again = None if is_clear(base, found) else [self._scores(tokens, None) for tokens in asked]
        return prove(reference, base, found, again, precision(self._llm.llm_engine))

    def _scores(self, tokens: Sequence[int], request: Any) -> list[Scored]:
        """Of each given token but the first; alone in its step, since vLLM mixes up rows of an adapter on the head."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        prompt = tokens_input(prompt_token_ids=list(tokens))
        (output,) = self._llm.generate([prompt], params, lora_request=request, use_tqdm=False)
        given = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
        return [Scored(entry[token].logprob, entry[token].rank) for token, entry in given if entry]

    def start(self, row: Row, ref: VersionRef | None, sampling: Mapping[str, Any]) -> str:
        """Begin a row; raises Unanswerable for one that vLLM refuses, such as one that is too long."""
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        request = self._loaded[ref] if ref else None
        try:
            params = SamplingParams(**{**self._defaults, **sampling})
            if row.messages is None:
                begun = self._llm.enqueue([row.prompt], params, lora_request=request, use_tqdm=False)
            else:
                messages = [dict(message) for message in row.messages]
                begun = self._llm.enqueue_chat([messages], params, lora_request=request, use_tqdm=False)
        except EngineDeadError as error:
            raise _stopped(error) from error
        except Exception as error:  # a template raises what it likes
            raise Unanswerable(printable(first_line(error), 500)) from error
        # The engine makes its own ids of the counted ones, `7-1f2e3d4c`, and gives back the counted ones.
        number: str = begun[0].partition("-")[0]
        return number

    def step(self) -> Iterator[tuple[str, Outcome | Unanswerable]]:
        """Generate a token for every row that was begun; those that ended. Raises LoradockError when vLLM fails."""
        try:
            outputs: Iterable[Any] = self._llm.llm_engine.step()
        except Exception as error:
            raise _stopped(error) from error
        for output in outputs:
            if output.finished:
                yield output.request_id, _outcome(output)


def _outcome(output: Any) -> Outcome | Unanswerable:
    (completion,) = output.outputs
    if completion.finish_reason in _UNFINISHED:
        return Unanswerable(f"vLLM ended it with {completion.finish_reason!r}")
    usage = Usage(prompt_tokens=len(output.prompt_token_ids), completion_tokens=len(completion.token_ids))
    return Outcome(completion.text, completion.finish_reason, usage)


def _stopped(error: Exception) -> LoradockError:
    return LoradockError(
        f"vLLM failed: {printable(first_line(error), 500)}",
        hint="the answers so far are kept; run the same command again to continue",
    )
