"""What a recipe names and its base does not have is refused with its line, before a weight is loaded."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from loradock.cli.plan import plan
from loradock.registry.errors import BadInput
from loradock.trainer import catalogue, data, dialects, meta, preflight, tokens
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.rows import Text
from loradock.trainer.tokens import Side
from tests.support.trainer.training import write_rows

TWO = {"target_modules": ["q_proj", "v_proj"]}


def faults(directory: Path, base: Path, method: dict[str, Any], **training: Any) -> list[str]:
    """What is refused of a method, each with the line's own words before it."""
    write_rows(directory, 4)
    path = directory / "r.yaml"
    training = {"max_steps": 1} | training
    whole = {"base": str(base), "data": "rows.jsonl", "method": method, "training": training}
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    lines = path.read_text().splitlines()
    try:
        preflight.check(dialects.load(path, lambda _: None), meta.config(base))
    except BadInput as error:
        found = [problem.split(":", 2) for problem in error.problems]
        return [f"{lines[int(line) - 1].strip()} | {said.strip()}" for _, line, said in found]
    return []


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"alpha_pattern": {"v_proj": 4, "q_prj": 2}}, "q_prj: 2 | method.alpha_pattern.q_prj: .*did you mean q_proj"),
        ({"rank_pattern": {"self_attn.q_prj": 2}}, "self_attn.q_prj: 2 | .*did you mean self_attn.q_proj"),
        ({"rank_pattern": {"q_proj": 2}, "target_modules": ["v_proj"]}, "q_proj: 2 | .*no module that carries"),
        (
            {"alpha_pattern": {"q_proj": 2, "layers.0.self_attn.q_proj": 9}},
            "layers.0.* | .*changes nothing: q_proj",
        ),
        ({"type": "c3a", "block_size_pattern": {"v_prj": 3}}, "v_prj: 3 | .*did you mean v_proj"),
        (
            {"exclude_modules": ["q_proj", "down_prj"]},
            "- down_prj | method.exclude_modules.1.: .*mean down_proj",
        ),
        ({"exclude_modules": ["mlp"]}, "- mlp | .*no module with weights"),
        ({"exclude_modules": r".*down_prj"}, "exclude_modules: .* | .*matches nothing"),
        ({**TWO, "layers_to_transform": [1, 2]}, "- 2 | .*this base has layers 0 to 1"),
        ({**TWO, "layers_to_transform": -1}, "layers_to_transform: -1 | .*this base has layers 0 to 1"),
        ({**TWO, "layers_to_transform": 1, "layers_pattern": "layer"}, "layers_pattern: layer | .*did you mean layers"),
        ({"layers_to_transform": [0]}, "method: | .*PEFT refuses the settings of lora"),
        ({"modules_to_save": ["lm_hed"]}, "- lm_hed | .*did you mean lm_head"),
        ({"target_parameters": ["gate_proj.wight"]}, "- gate_proj.wight | .*did you mean gate_proj.weight"),
        ({"target_modules": ["q_prj", "v_proj"]}, "- q_prj | .*did you mean q_proj"),
        ({"target_modules": ".*[.]q_prj"}, "target_modules: .* | .*matches nothing"),
        ({"target_modules": "(q_proj"}, "target_modules: .* | .*is no regular expression"),
        ({"type": "ia3", "target_modules": ["k_proj"], "feedforward_modules": ["k_prj"]}, "- k_prj | .*mean k_proj"),
        ({**TWO, "trainable_token_indices": [1, 49152]}, "trainable_token_indices: | .*this base has 49,152"),
        ({**TWO, "trainable_token_indices": {"embed_token": [1]}}, "embed_token: | .*did you mean embed_tokens"),
        ({"target_modules": ["embed_tokens"], "trainable_token_indices": [1]}, "method: | .*cannot be applied to"),
        ({**TWO, "trainable_token_indices": []}, "trainable_token_indices: .* | .*at least one token"),
        ({**TWO, "trainable_token_indices": {"embed_tokens": []}}, "trainable_token_indices: | .*at least one token"),
        (
            {**TWO, "trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
            "trainable_token_indices: | .*trains all of model.embed_tokens",
        ),
        (
            {**TWO, "trainable_token_indices": [1], "modules_to_save": ["lm_head"]},
            "trainable_token_indices: | .*trains all of lm_head",
        ),
        ({"type": "trainable_tokens", "token_indices": [-1]}, "token_indices: | .*is no token"),
        ({**TWO, "alora_invocation_tokens": [1, 49152]}, "alora_invocation_tokens: | .*this base has 49,152"),
        ({"r": 577, **TWO}, "r: 577 | method.r: 577 is larger than"),
        (
            {"rank_pattern": {"k_proj": 193}},
            "rank_pattern: | method.rank_pattern: 193 is larger than .*192",
        ),
        ({"type": "c3a", "block_size": 7}, "method: | .*PEFT cannot put c3a"),
        ({"type": "adaption_prompt", "adapter_layers": 5}, "method: | .*PEFT cannot put adaption_prompt"),
        ({"type": "pissa", "target_modules": ["lm_head"]}, "method: | .*takes a part out of lm_head"),
        ({"type": "olora", "target_modules": ["embed_tokens"]}, "method: | .*takes a part out of .*embed_tokens"),
    ],
    ids=str,
)
def test_a_name_that_the_base_does_not_have_is_told_with_its_line(
    method: dict[str, Any], said: str, shallow_dir: Path, tmp_path: Path
) -> None:
    (found,) = faults(tmp_path, shallow_dir, {"type": "lora", **method})
    line, _, words = said.partition(" | ")
    assert re.match(f"{line} \\| {words}", found), found


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"lr_scheduler_kwargs": {"nonsense": 3}}, "lr_scheduler_kwargs: | .*cosine refuses it: .*'nonsense'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "training: | .*cosine_with_min_lr refuses it: .*min_lr"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_the_schedule_does_not_take_is_told(
    kind: str, training: dict[str, Any], said: str, shallow_dir: Path, tmp_path: Path
) -> None:
    (found,) = faults(tmp_path, shallow_dir, {"type": kind}, **training)
    line, _, words = said.partition(" | ")
    assert re.match(f"{line} \\| {words}", found), found


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning", "cpt", "trainable_tokens", "lora"])
def test_packed_rows_are_refused_where_the_loss_does_not_keep_them_apart(
    kind: str, shallow_dir: Path, tmp_path: Path
) -> None:
    needs = {"trainable_tokens": {"token_indices": [1, 2]}, "lora": {"alora_invocation_tokens": [1, 2]}}.get(kind, {})
    (found,) = faults(tmp_path, shallow_dir, {"type": kind, **needs}, packing=True)
    assert "set training.packing to false" in found


@pytest.mark.parametrize(
    "method",
    [
        *({"type": name} for name in catalogue.ENTRIES if name not in ("xlora", "trainable_tokens", "full")),
        {"exclude_modules": ["lm_head", "model.layers.0.mlp.up_proj"]},
        {**TWO, "layers_to_transform": [0], "layers_pattern": "layers"},
        {"modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate_proj.weight"]},
        {"rank_pattern": {r"layers\.0\..*": 2, "q_proj": 4}, "alpha_pattern": {"^model.layers.1.mlp.up_proj": 3}},
        {"target_modules": r".*\.[qv]_proj", "exclude_modules": r".*layers\.1.*"},
        {**TWO, "trainable_token_indices": {"embed_tokens": [0, 49151]}},
    ],
    ids=str,
)
def test_what_the_base_has_is_let_through(method: dict[str, Any], shallow_dir: Path, tmp_path: Path) -> None:
    assert faults(tmp_path, shallow_dir, {"type": "lora", **method}) == []


def invoked(directory: Path, base: Path, text: str) -> tuple[RecipeFile, Side, PreTrainedTokenizerBase]:
    """An activated LoRA's recipe with its rows as tokens, of which one says aye."""
    write_rows(directory, 4)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(text)["input_ids"]
    whole = {"base": str(base), "data": "rows.jsonl", "method": {**TWO, "alora_invocation_tokens": ids}}
    (directory / "r.yaml").write_text(yaml.safe_dump(whole | {"training": {"max_steps": 1}}))
    source = dialects.load(directory / "r.yaml", lambda _: None)
    extra = Text("Aye aye!", place="rows.jsonl:5")
    rows = (*data.load(source.recipe.data, directory).rows, extra)
    return source, tokens.fitting(rows, [], tokenizer, 64).train, tokenizer


def gradient(base: Path, source: RecipeFile, side: Side) -> list[float]:
    """The size of the gradient of each example, by PEFT on the real base."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = dict(source.recipe.method.settings)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    found = []
    for row in side.tokens:
        plain = row.plain()
        model.zero_grad()
        model(input_ids=torch.tensor([plain["input_ids"]]), labels=torch.tensor([plain["labels"]])).loss.backward()
        found.append(sum(float(part.grad.abs().sum()) for name, part in model.named_parameters() if "lora_B" in name))
    return found


@pytest.mark.parametrize("text", ["<|im_start|>assistant\n", "Aye", "!", "<|im_end|>\n", "Nay"])
def test_an_activated_lora_that_no_row_invokes_is_refused_and_rows_that_do_not_are_told(
    text: str, shallow_dir: Path, tmp_path: Path
) -> None:
    source, side, tokenizer = invoked(tmp_path, shallow_dir, text)
    idle = [place for place, size in zip(side.places, gradient(shallow_dir, source, side), strict=True) if not size]
    if len(idle) < len(side.tokens):
        told = preflight.check_rows(source, side, tokenizer, meta.config(shallow_dir))
        places = f"({', '.join(idle)}) no answer follows"
        found = [places in words and words.startswith(f"in {len(idle)} example") for words in told]
        assert found == ([True] if idle else [])
        return
    with pytest.raises(BadInput) as raised:
        preflight.check_rows(source, side, tokenizer, meta.config(shallow_dir))
    line = 1 + (tmp_path / "r.yaml").read_text().splitlines().index("  alora_invocation_tokens:")
    assert raised.value.problems[0].startswith(
        f"r.yaml:{line}: method.alora_invocation_tokens: in every row no answer follows ["
    )
    assert "<|im_start|>assistant" in raised.value.hint


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["trainable_tokens", "lora"])
def test_tokens_that_no_row_has_are_told_where_nothing_would_be_trained_of_them(
    kind: str, tied: bool, shallow_dir: Path, tmp_path: Path
) -> None:
    _, side, tokenizer = invoked(tmp_path, shallow_dir, "Aye")
    model = AutoModelForCausalLM.from_pretrained(shallow_dir)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    seen, unseen = side.tokens[0].input_ids[0], 30000
    key = "token_indices" if kind == "trainable_tokens" else "trainable_token_indices"
    targets = {"target_modules": ["embed_tokens"]} if kind == "trainable_tokens" else TWO
    made = TrainableTokensConfig if kind == "trainable_tokens" else LoraConfig
    with warnings.catch_warnings():  # PEFT's remark on tied weights
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, made(task_type="CAUSAL_LM", **targets, **{key: [seen, unseen]}))
    plain = side.tokens[0].plain()
    wrapped(input_ids=torch.tensor([plain["input_ids"]]), labels=torch.tensor([plain["labels"]])).loss.backward()
    [deltas] = [
        part for name, part in wrapped.named_parameters() if "trainable_tokens_delta" in name and part.requires_grad
    ]
    trained = [bool(row.abs().sum()) for row in deltas.grad]
    assert trained == [True, tied]

    def told(*indices: int) -> list[str]:
        whole = {
            "base": str(shallow_dir),
            "data": "rows.jsonl",
            "method": {"type": kind, **targets, key: list(indices)},
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(whole))
        return preflight.check_rows(dialects.load(tmp_path / "r.yaml", lambda _: None), side, tokenizer, model.config)

    assert [words.split(",")[0] for words in told(seen, unseen)] == ([] if tied else [f"no row has [{unseen}]"])
    if kind == "trainable_tokens" and not tied:
        with pytest.raises(BadInput) as raised:
            told(unseen)
        assert "method.token_indices: no row has [30000]" in raised.value.problems[0]


AXOLOTL = {
    "adapter": "lora",
    "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
    "learning_rate": 1e-4,
    "micro_batch_size": 1,
    "max_steps": 1,
    "lora_r": 4,
    "lora_alpha": 8,
    "sequence_len": 64,
}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (
            {"lora_target_modules": ["q_proj", "v_prj"]},
            "- v_prj | lora_target_modules[1]: 'v_prj': no module of this base ends so; did you mean v_proj?",
        ),
        (
            {"lora_target_modules": ["q_proj"], "lora_rank_pattern": {"q_prj": 2}},
            "q_prj: 2 | lora_rank_pattern.q_prj: no module that carries the method ends so; did you mean q_proj?",
        ),
    ],
)
def test_another_trainers_recipe_is_told_its_own_keys_and_lines(
    theirs: dict[str, Any], said: str, shallow_dir: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path, 4)
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump({"base_model": str(shallow_dir), **AXOLOTL, **theirs}, sort_keys=False))
    with pytest.raises(BadInput) as raised:
        preflight.check(dialects.load(path, lambda _: None), meta.config(shallow_dir))
    (problem,) = raised.value.problems
    _, line, words = problem.split(":", 2)
    assert f"{path.read_text().splitlines()[int(line) - 1].strip()} | {words.strip()}" == said


def test_plan_refuses_what_train_refuses(shallow_dir: Path, tmp_path: Path) -> None:
    write_rows(tmp_path, 4)
    whole = {"base": str(shallow_dir), "data": "rows.jsonl", "method": {"alpha_pattern": {"q_prj": 2}}}
    (tmp_path / "r.yaml").write_text(json.dumps(whole))
    raised = CliRunner().invoke(plan, [str(tmp_path / "r.yaml")]).exception
    assert isinstance(raised, BadInput)
    assert "did you mean q_proj?" in raised.problems[0]
