"""Adapters that PEFT itself makes, of any method, with weights from a fixed seed; and versions of them in a store."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loradock.registry import artifact, versions
from loradock.registry.base import LocalBase, identify
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import methods
from loradock.trainer.recipe import Method
from tests.support.adapters import log_adapter

NEEDED: dict[str, dict[str, Any]] = {
    "boft": {"target_modules": ["v_proj"]},
    "trainable_tokens": {"token_indices": [1, 2, 3]},
}
"""What has to be said of a method beside its name."""


@dataclass(frozen=True)
class AdapterMaker:
    """A store and the base that its adapters are for."""

    settings: Settings
    store: Store
    local: LocalBase
    scratch: Path

    def adapter(self, name: str, kind: str, *, seed: int = 1, size: float = 0.02, **said: Any) -> Path:
        """The files of an adapter of some method of the catalogue, with noise on every weight that is trained."""
        directory = self.scratch / name
        torch.manual_seed(seed)
        method = Method.model_validate({"type": kind, **NEEDED.get(kind, {}), **said})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(self.local.path)
            model = methods.wrap(model, methods.configure(method, model, steps=4))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += torch.randn(parameter.shape) * size
            model.save_pretrained(directory, save_embedding_layers=False)
        (directory / "README.md").unlink()
        return _whole(directory)

    def raw(self, name: str, kind: str, **said: Any) -> Path:
        """The files of an adapter as PEFT makes it of a configuration, its weights not at their start."""
        directory = self.scratch / name
        torch.manual_seed(1)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind.upper())](task_type="CAUSAL_LM", **said)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(self.local.path), config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += torch.randn(parameter.shape) * 0.02
            model.save_pretrained(directory, save_embedding_layers=False)
        (directory / "README.md").unlink()
        return _whole(directory)

    def version(self, directory: Path, name: str, **base: str) -> Version:
        """Register an adapter's files."""
        found = self.local.base.model_copy(update=base)
        facts = versions.describe(directory, found, run_id="", data_digest="")
        return versions.register(self.store, log_adapter(self.store, directory, base=found, rank=facts.rank), name)

    def make(self, name: str, kind: str, **said: Any) -> Version:
        """A version of some method."""
        return self.version(self.adapter(name, kind, **said), name)


def _whole(directory: Path) -> Path:
    artifact.canonicalise(directory)
    artifact.write_manifest(directory)
    return directory


def adapter_maker(settings: Settings, store: Store, base: Path, scratch: Path) -> AdapterMaker:
    """A store whose adapters are for the base in a directory."""
    return AdapterMaker(settings, store, LocalBase(base, identify(base, base_id=base.name)), scratch)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights that PEFT's own merge_and_unload gives, on the whole model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        found: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return found


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model's directory."""
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


def rows(directory: Path, count: int = 12) -> str:
    """A file of so many short conversations."""
    turns = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"Arr, {n} be {n}!"}]
        for n in range(count)
    ]
    path = directory / "heldout.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in turns))
    return str(path)


def deltas(directory: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, by the formula."""
    config, tensors = (
        json.loads((directory / "adapter_config.json").read_text()),
        load_file(directory / "adapter_model.safetensors"),
    )
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {name: scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}


def bare(local: LocalBase) -> Any:
    return AutoModelForCausalLM.from_pretrained(local.path, dtype=torch.float32).eval()


def made(local: LocalBase, directory: Path, settings: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(bare(local), LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.05
        model.save_pretrained(directory, save_embedding_layers=False)
    return directory
