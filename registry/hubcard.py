"""A version's model card on the Hub: metadata that the Hub reads, and Markdown that people read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Any, Final

from loradock.registry.check.vllm import RANKS
from loradock.registry.evidence import PERPLEXITY, Evidence
from loradock.registry.records import Version

MERGED: Final = "merged"
"""The method of a version that is a whole model: an adapter that was folded into its base."""
_DATA_SET = re.compile(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Told:
    """What a card is written from."""

    version: Version
    repo: str
    licence: Mapping[str, str]
    """`license` as the Hub has it, and the name and link of one that has no id."""
    base_model: str = ""
    """The base's name on the Hub; empty for a base that is not there."""
    base_revision: str = ""
    evidence: tuple[Evidence, ...] = ()
    """Its evaluations, newest first."""
    parameters: Mapping[str, str] | None = None
    """What its training logged."""

    @property
    def is_merged(self) -> bool:
        """Whether it is a whole model."""
        return self.version.facts.method == MERGED


def metadata(told: Told) -> dict[str, Any]:
    """What the Hub files it by (https://huggingface.co/docs/hub/model-cards)."""
    facts = told.version.facts
    found: dict[str, Any] = {"license": told.licence["license"]}
    found |= {key: value for key, value in told.licence.items() if key != "license"}
    if told.base_model:
        # A model that was made of one base is its fine-tune; `merge` is one that was made of several.
        found |= {
            "base_model": told.base_model,
            "base_model_relation": "finetune" if told.is_merged else "adapter",
        }
    found["library_name"] = "transformers" if told.is_merged else "peft"
    found["pipeline_tag"] = "text-generation"
    found["tags"] = ["loradock", "lora" if told.is_merged else facts.method]
    if data_sets := _data_sets(told):
        found["datasets"] = data_sets
    if results := list(_results(told)):
        found["metrics"] = sorted({metric["type"] for result in results for metric in result["metrics"]})
        found["model-index"] = [{"name": told.repo.partition("/")[2], "results": results}]
    return found


def text(told: Told) -> str:
    """What people read."""
    facts, ref = told.version.facts, told.version.ref
    kind = "model, an adapter folded into its base" if told.is_merged else f"{facts.method} adapter"
    base = f"[{told.base_model}](https://huggingface.co/{told.base_model})" if told.base_model else f"`{facts.base.id}`"
    return "\n".join(
        (
            f"# {told.repo.partition('/')[2]}\n",
            f"A {kind}, of {base}. It is version `{ref}`, kept with loradock.\n",
            *(_load_merged(told) if told.is_merged else _load_adapter(told)),
            *_evaluation(told),
            *_lineage(told),
        )
    )


def _data_sets(told: Told) -> list[str]:
    return sorted(set(_DATA_SET.findall((told.parameters or {}).get("data.file", ""))))


def _values(evidence: Evidence) -> Iterator[tuple[str, float, float | None]]:
    """Each metric with the version's value and the bare base's."""
    for name in (*sorted(evidence.metrics), *([PERPLEXITY] if "loss" in evidence.metrics else [])):
        value = evidence.value(name, "candidate")
        if value is not None:
            yield name, value, evidence.value(name, "base")


def _results(told: Told) -> Iterator[dict[str, Any]]:
    """The model-index's results: the newest evaluation on each set of rows."""
    for evidence in _newest(told.evidence):
        yield {
            "task": {"type": "text-generation"},
            "dataset": {"type": "held-out", "name": f"held-out rows {evidence.data_digest[:12]}"},
            "metrics": [{"type": name, "value": round(value, 6), "name": name} for name, value, _ in _values(evidence)],
        }


def _newest(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    found: dict[str, Evidence] = {}
    for one in evidence:
        found.setdefault(one.data_digest, one)
    return tuple(found.values())


def _base(told: Told) -> tuple[str, str]:
    """The base as code names it, with what else its loading takes."""
    if not told.base_model:
        return "PATH/TO/THE/BASE", ""
    return told.base_model, f', revision="{told.base_revision}"' if told.base_revision else ""


def _load_adapter(told: Told) -> Iterator[str]:
    (base, revision), version, name = _base(told), told.version, told.version.ref.name
    yield f"""\
## With PEFT

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}"{revision})
model = PeftModel.from_pretrained(base, "{told.repo}")
tokenizer = AutoTokenizer.from_pretrained("{base}"{revision})
```

## With vLLM
"""
    if version.findings:
        yield f"vLLM cannot serve it: {'; '.join(version.findings)}.\n"
        return
    rank = next((rank for rank in RANKS if rank >= max(version.facts.rank, 16)), RANKS[-1])
    flag = f" --revision {told.base_revision}" if told.base_revision else ""
    yield f"""\
```
vllm serve {base}{flag} --enable-lora --max-lora-rank {rank} --lora-modules {name}={told.repo}
```

```python
from vllm import LLM
from vllm.lora.request import LoRARequest

llm = LLM("{base}"{revision}, enable_lora=True, max_lora_rank={rank})
llm.chat([{{"role": "user", "content": "Hello"}}], lora_request=LoRARequest("{name}", 1, "{told.repo}"))
```
"""


def _load_merged(told: Told) -> Iterator[str]:
    yield f"""\
## With Transformers

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{told.repo}")
tokenizer = AutoTokenizer.from_pretrained("{told.repo}")
```

## With vLLM

```
vllm serve {told.repo}
```
"""


def _evaluation(told: Told) -> Iterator[str]:
    yield "## Evaluation\n"
    if not told.evidence:
        yield "It was not evaluated with loradock.\n"
        return
    yield "On rows that it was not trained on:\n"
    yield "| metric | this version | base alone | rows | rows' digest |\n|---|---|---|---|---|"
    for evidence in _newest(told.evidence):
        for name, value, base in _values(evidence):
            compared = "-" if base is None else f"{base:.4g}"
            yield f"| {name} | {value:.4g} | {compared} | {len(evidence.weights)} | `{evidence.data_digest[:12]}` |"
    yield ""


def _lineage(told: Told) -> Iterator[str]:
    version, facts = told.version, told.version.facts
    held = f", held as {facts.base.quantization} in training" if facts.base.quantization != "none" else ""
    rows = {
        "version": f"`{version.ref}`, of {version.created_at:%Y-%m-%d}",
        "digest": f"`{facts.digest}`",
        "MLflow run": f"`{facts.run_id}`",
        "made from": ", ".join(f"`{parent}`" for parent in facts.parents),
        "base": f"`{facts.base.id}`" + (f" at `{facts.base.revision}`" if facts.base.revision else "") + held,
        "base weights' digest": f"`{facts.base.weights_digest}`",
        "method": facts.method + (f", rank {facts.rank}" if facts.rank else ""),
        "on": ", ".join(f"`{target}`" for target in facts.targets),
        "training data": ", ".join(_data_sets(told)),
        "training data's digest": f"`{facts.data_digest}`" if facts.data_digest else "not known",
        "published with": f"loradock {installed('loradock')}",
    }
    yield "## Lineage\n\n| | |\n|---|---|"
    yield from (f"| {key} | {value} |" for key, value in rows.items() if value)
    yield "\nThe digest is the SHA-256 of `manifest.json`, which has the size and the SHA-256 of each file.\n"
