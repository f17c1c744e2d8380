"""An evaluation gives the trainer's own losses, real answers, and evidence that the registry can take."""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from loradock.cli.evaluate import evaluate as command
from loradock.registry import promotion, versions
from loradock.registry.artifact import WEIGHTS
from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import BadInput, DigestMismatch, LoradockError, NotFound, Refused, WrongBase
from loradock.registry.records import Facts, Version
from loradock.registry.refs import parse_ref
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.store.evidence import EXPERIMENT
from loradock.trainer import data, methods
from loradock.trainer.evaluation import contestants, heldout, metrics, run
from loradock.trainer.evaluation.local import Local
from loradock.trainer.evaluation.task import Task, prepare
from loradock.trainer.recipe import Data, Method, Recipe
from loradock.trainer.rows import ChatExample, TextExample
from loradock.trainer.run import Outcome
from loradock.trainer.tokens import Tokens
from tests.support import warm
from tests.support.adapters import SMOL, log_adapter, make_version, write_adapter
from tests.support.trainer.training import trained, write_rows, written

NAME = "support-bot"
METHOD = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
PLAIN = Recipe.model_validate({"name": "plain", "base": "base", "data": "rows.jsonl"})


@dataclass(frozen=True)
class TrainedStore:
    """A store with two trained versions, the first of which is in production."""

    settings: Settings
    store: Store
    base_dir: Path
    directory: Path
    outcomes: tuple[Outcome, Outcome]
    versions: tuple[Version, Version]

    def task(self, ref: str = f"{NAME}/2", **changes: object) -> Task:
        rows = str(self.directory / "rows.jsonl")
        task = Task(parse_ref(ref), rows, metrics.parse(["loss"]), base=str(self.base_dir), new_tokens=6)
        return replace(task, **changes)  # type: ignore[arg-type]

    def evaluate(
        self, ref: str = f"{NAME}/2", *, say: Callable[[str], None] = lambda _: None, **changes: object
    ) -> run.Outcome:
        return run.evaluate(prepare(self.task(ref, **changes), self.settings, say), say)


@pytest.fixture(scope="module")
def trained_store(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path, empty_store: Path) -> TrainedStore:
    directory = tmp_path_factory.mktemp("evaluated")
    settings = Settings(home=directory / "home")
    settings.home.mkdir()
    shutil.copy(empty_store, settings.home / "mlflow.db")
    store = Store(settings)
    outcomes = []
    made = []
    for rate in (1e-3, 3e-3):
        training = {"max_steps": 3, "learning_rate": rate, "logging_steps": 1, "dtype": "float32"}
        source, rows = written(directory, shallow_dir, method=METHOD, training=training)
        outcomes.append(trained(source, rows, settings))
        made.append(versions.register(store, outcomes[-1].run_id, NAME))
    promotion.promote(store, made[0].ref, "production", actor="tester")
    return TrainedStore(settings, store, shallow_dir, directory, (outcomes[0], outcomes[1]), (made[0], made[1]))


@pytest.fixture(scope="module")
def measured(trained_store: TrainedStore) -> run.Outcome:
    (trained_store.directory / "mine.py").write_text(
        "def long(prediction, reference, prompt): return len(prediction)\n"
    )
    wanted = metrics.parse(["loss", "exact_match", "rouge", f"{trained_store.directory / 'mine.py'}:long:lower"])
    return trained_store.evaluate(metrics=wanted)


@pytest.mark.slow
@pytest.mark.story
def test_the_losses_are_those_that_the_trainer_measured(trained_store: TrainedStore, measured: run.Outcome) -> None:
    found = measured.evidence
    assert found.value("loss", "candidate") == pytest.approx(trained_store.outcomes[1].eval_loss, abs=1e-3)
    assert found.value("loss", "incumbent") == pytest.approx(trained_store.outcomes[0].eval_loss, abs=1e-3)
    assert found.value("loss", "base") == pytest.approx(trained_store.outcomes[1].eval_loss_before, abs=1e-3)
    assert found.value("loss", "candidate") != pytest.approx(trained_store.outcomes[0].eval_loss, abs=2e-3)


@pytest.mark.slow
def test_only_what_was_held_out_of_the_training_is_used(trained_store: TrainedStore, measured: run.Outcome) -> None:
    rows = data.load(
        Data.model_validate({"path": str(trained_store.directory / "rows.jsonl")}), trained_store.directory
    )
    _, held_out = rows.split(0.3)
    assert measured.evidence.rows == heldout.hashes(replace(rows, rows=held_out))
    assert measured.evidence.data_digest == replace(rows, rows=held_out).digest


@pytest.mark.slow
def test_the_registry_finds_it_as_evidence(trained_store: TrainedStore, measured: run.Outcome) -> None:
    (found,) = trained_store.store.find_evidence(NAME, trained_store.versions[1].facts.digest)
    assert found == measured.evidence
    assert found.incumbent == trained_store.versions[0].facts.digest
    assert found.base == identify(trained_store.base_dir, base_id="base").weights_digest
    assert (found.through, set(found.metrics)) == ("transformers", {"loss", "exact_match", "rouge", "long"})
    assert {name: scores.better for name, scores in found.metrics.items() if scores.better == "lower"} == {
        "loss": "lower",
        "long": "lower",
    }
    assert measured.differences["loss", "incumbent"].mean < 0


@pytest.mark.slow
def test_its_run_shows_a_table_a_picture_and_what_decided_the_figures(
    trained_store: TrainedStore, measured: run.Outcome
) -> None:
    client, run_id = trained_store.store.client, measured.evidence.run_id
    found = client.get_run(run_id)
    assert (found.info.run_name, found.info.status) == (f"{NAME}/2 on rows.jsonl", "FINISHED")
    assert client.get_experiment(found.info.experiment_id).name == EXPERIMENT
    assert (
        found.data.params.items() >= {"version": f"{NAME}/2", "incumbent": f"{NAME}/1", "max_new_tokens": "6"}.items()
    )
    assert len(found.data.params["metric.long.sha256"]) == 64
    assert str(trained_store.directory) not in json.dumps([found.data.params, found.data.tags])
    assert Path(client.download_artifacts(run_id, "evaluation.png")).read_bytes().startswith(b"\x89PNG")
    table = json.loads(Path(client.download_artifacts(run_id, "rows.json")).read_text())
    assert table["columns"][:6] == ["row", "prompt", "reference", "candidate", "incumbent", "base"]
    assert "loss of candidate" in table["columns"]
    assert len(table["data"]) == len(measured.evidence.weights)
    assert "What is" in table["data"][0][1]
    assert table["data"][0][2].startswith("Arr")


@pytest.mark.slow
def test_without_samples_its_run_has_all_figures_and_no_text_of_a_row(
    trained_store: TrainedStore, tmp_path: Path
) -> None:
    wanted = metrics.parse(["loss", "exact_match"])
    found = trained_store.evaluate(metrics=wanted, texts=False, limit=3).evidence
    client = trained_store.store.client
    table = json.loads(Path(client.download_artifacts(found.run_id, "rows.json")).read_text())
    assert table["columns"][:2] == ["row", "loss of candidate"]
    assert len(table["data"]) == len(found.weights)
    kept = Path(client.download_artifacts(found.run_id, "", str(tmp_path)))
    run_ = client.get_run(found.run_id)
    texts = [path.read_text() for path in kept.rglob("*.json")] + [json.dumps([run_.data.params, run_.data.tags])]
    assert not any("What is" in text or "Arr" in text for text in texts)
    assert found in trained_store.store.find_evidence(NAME, found.candidate)


@pytest.mark.slow
def test_answers_are_those_of_plain_peft_one_at_a_time(
    trained_store: TrainedStore, measured: run.Outcome, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    client = trained_store.store.client
    table = json.loads(Path(client.download_artifacts(measured.evidence.run_id, "rows.json")).read_text())
    trained_store.store.download(trained_store.versions[1].source, tmp_path, what="the adapter")
    model = AutoModelForCausalLM.from_pretrained(trained_store.base_dir)
    tokenizer = AutoTokenizer.from_pretrained(trained_store.base_dir)
    model = PeftModel.from_pretrained(model, tmp_path).eval()
    for _, _, reference, candidate, *_ in table["data"][:3]:
        number = reference.split()[1]
        turns = [{"role": "user", "content": f"What is {number}?"}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        said = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        assert tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == candidate


@pytest.mark.slow
def test_the_bases_own_settings_of_generation_are_told_and_left_out_of_greedy_answers(
    trained_store: TrainedStore, measured: run.Outcome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(trained_store.base_dir, tmp_path / "base")
    own = {"no_repeat_ngram_size": 1, "repetition_penalty": 1.3, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(own))
    said: list[str] = []
    caplog.set_level(logging.WARNING, logger="loradock.registry")  # whatever was switched off before it
    asked = metrics.parse(["rouge", "exact_match"])
    found, plain = (
        trained_store.evaluate(metrics=asked, base=str(each), say=said.append)
        for each in (base, trained_store.base_dir)
    )
    assert found.evidence.metrics == plain.evidence.metrics
    assert measured.evidence.metrics["rouge"] == found.evidence.metrics["rouge"]
    left = "without no_repeat_ngram_size 1, repetition_penalty 1.3 of the base's generation_config.json"
    assert any(line.endswith(left) for line in said)
    assert (
        f"warning: {NAME}/2 was trained with another generation_config.json than its base has here" in caplog.messages
    )
    params = trained_store.store.client.get_run(found.evidence.run_id).data.params
    assert params["generation"] == "temperature 0, repetition_penalty 1, presence_penalty 0, frequency_penalty 0"
    assert params["base.template"] == trained_store.versions[1].facts.text.template
    assert params["base.generation"] != trained_store.versions[1].facts.text.generation


@pytest.mark.slow
def test_rows_that_the_template_refuses_are_named_before_anything_is_loaded(
    trained_store: TrainedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(trained_store.base_dir, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")
    monkeypatch.delattr(run.local, "Local")
    with pytest.raises(BadInput, match="refuses rows") as raised:
        trained_store.evaluate(base=str(base), limit=2)
    assert [problem.rpartition(": ")[2] for problem in raised.value.problems] == ["not today"] * 2
    assert raised.value.problems[0].startswith("rows.jsonl:")


@pytest.mark.slow
def test_without_an_incumbent_and_with_the_incumbent_itself(trained_store: TrainedStore) -> None:
    said: list[str] = []
    alone = trained_store.evaluate(limit=2, say=said.append)
    assert len(alone.evidence.weights) == 2
    same = trained_store.evaluate(f"{NAME}@production", limit=2)
    scores = same.evidence.metrics["loss"]
    assert scores.candidate == scores.incumbent
    assert same.evidence.incumbent == same.evidence.candidate
    with pytest.raises(NotFound, match="has no alias 'staging'"):
        trained_store.evaluate(against="staging")
    other = make_version(
        trained_store.store, trained_store.directory / "alone", "alone", base=trained_store.versions[0].facts.base
    )
    said.clear()
    found = trained_store.evaluate(str(other.ref), limit=2, say=said.append)
    assert (found.incumbent, found.evidence.incumbent, found.evidence.metrics["loss"].incumbent) == (None, "", ())
    assert any("there is no incumbent" in line for line in said)


@pytest.mark.slow
def test_other_bytes_another_base_and_no_base_are_refused_before_anything_is_loaded(
    trained_store: TrainedStore, base_dir: Path, tmp_path: Path
) -> None:
    directory = write_adapter(tmp_path / "bad", seed=9)
    version = versions.register(
        trained_store.store,
        log_adapter(trained_store.store, directory, base=trained_store.versions[0].facts.base),
        "bad",
    )
    location = trained_store.store.client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    with Path(f"{location.removeprefix('file://')}/adapter_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DigestMismatch, match=r"adapter_config\.json changed"):
        trained_store.evaluate(str(version.ref))
    with pytest.raises(WrongBase, match="was trained on SmolLM2-2-layers"):
        trained_store.evaluate(base=str(base_dir))
    with pytest.raises(NotFound) as raised:
        trained_store.evaluate(base=None)
    assert "--base DIR" in raised.value.hint


@pytest.mark.slow
def test_a_failing_metric_leaves_a_failed_run_and_no_evidence(trained_store: TrainedStore, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def bad(prediction, reference, prompt): raise KeyError('x')\n")
    before = trained_store.store.find_evidence(NAME, trained_store.versions[1].facts.digest)
    with pytest.raises(BadInput, match=r"the metric bad fails on row 1, .*KeyError: 'x'"):
        trained_store.evaluate(metrics=metrics.parse([f"{tmp_path / 'mine.py'}:bad"]), limit=1)
    experiment = trained_store.store.client.get_experiment_by_name(EXPERIMENT)
    newest = trained_store.store.client.search_runs([experiment.experiment_id], max_results=1)[0]
    assert newest.info.status == "FAILED"
    assert "the metric bad fails" in newest.data.tags["loradock.reason"]
    assert trained_store.store.find_evidence(NAME, trained_store.versions[1].facts.digest) == before


@pytest.mark.slow
def test_plain_text_is_measured_by_loss_alone(trained_store: TrainedStore, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "It is what it is."}\n{"text": "It was."}\n')
    found = trained_store.evaluate(data=str(tmp_path / "text.jsonl"))
    assert len(found.evidence.weights) == 2
    with pytest.raises(BadInput, match="plain texts"):
        trained_store.evaluate(data=str(tmp_path / "text.jsonl"), metrics=metrics.parse(["rouge"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "ia3", "prompt_tuning", "adaption_prompt", "pissa"])
def test_the_base_is_itself_again_after_every_kind_of_adapter(
    name: str, trained_store: TrainedStore, tmp_path: Path
) -> None:
    """A PiSSA start that was not put back changes the base's weights, and LLaMA-Adapter cannot be taken off."""
    adapters = {}
    for subject, kind, seed in (("candidate", name, 1), ("incumbent", "lora", 2)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(trained_store.base_dir)
        wrapped = methods.wrap(model, methods.configure(Method.model_validate({"type": kind}), model))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn_like(parameter)
        wrapped.save_pretrained(tmp_path / subject, save_embedding_layers=False)
        adapters[subject] = tmp_path / subject
    local = contestants.base_of(trained_store.versions[0], str(trained_store.base_dir), trained_store.settings)
    scorer = Local(local, contestants.as_trained(trained_store.versions[0], {}), adapters)  # type: ignore[arg-type]
    rows = data.load(
        Data.model_validate({"path": str(trained_store.directory / "rows.jsonl")}), trained_store.directory
    )
    _, items = heldout.items(replace(rows, rows=rows.rows[:3]), scorer.tokenizer, scorer.max_length, lambda _: None)

    def nats(subject: str) -> list[float]:
        return scorer.nats(subject, items, lambda _: None)  # type: ignore[arg-type]

    bare, alone = nats("base"), nats("incumbent")
    assert nats("candidate") != pytest.approx(bare, abs=1e-3)
    assert nats("base") == bare
    nats("candidate")
    assert nats("incumbent") == alone


@pytest.fixture
def parted(shallow_dir: Path, tmp_path: Path) -> LocalBase:
    """A base whose head is not its embeddings."""
    directory = shutil.copytree(shallow_dir, tmp_path / "parted")
    model = AutoModelForCausalLM.from_pretrained(shallow_dir)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(directory)
    return LocalBase(directory, identify(directory, base_id="parted"))


def test_the_base_has_its_own_embeddings_again_after_an_adapter_that_brought_others_along(
    parted: LocalBase, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(parted.path)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "embed_tokens"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    path = tmp_path / "adapter" / WEIGHTS
    held = load_file(path)
    name = next(name for name in held if "base_layer" in name)
    save_file(held | {name: held[name].index_fill(0, torch.arange(100, len(held[name])), 0.5)}, path)
    scorer = Local(parted, PLAIN, {"candidate": tmp_path / "adapter"})
    item = heldout.Item(0, TextExample("", "a"), Tokens(tuple(range(1000, 1010)), (0,) + (1,) * 9))
    bare, candidate, again = (scorer.nats(of, [item], lambda _: None) for of in ("base", "candidate", "base"))  # type: ignore[arg-type]
    assert candidate != pytest.approx(bare, abs=1e-3)
    assert again == bare


def test_an_adapter_that_peft_would_take_up_in_part_is_not_measured(parted: LocalBase, tmp_path: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(parted.path)
    get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    scorer = Local(parted, PLAIN, {"candidate": tmp_path / "adapter"})
    with pytest.raises(Refused, match=r"PEFT leaves out .*score.* of the candidate"):
        scorer.nats("candidate", [], lambda _: None)


def test_a_conversation_is_one_row_and_its_turns_count_by_their_tokens() -> None:
    def item(row: int, tokens: int) -> heldout.Item:
        return heldout.Item(row, TextExample("a", "b"), Tokens((0,) * (tokens + 1), (0, *(1,) * tokens)))

    items = [item(0, 3), item(0, 1), item(1, 2)]
    assert heldout.weights(items) == (4, 2)
    assert heldout.by_row(items, [1.0, 2.0, 5.0], [3.0, 1.0, 2.0]) == (1.25, 5.0)
    assert heldout.by_row(items, [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]) == (0.5, 1.0)


@pytest.mark.slow
def test_copies_count_once_and_what_is_too_long_is_told(trained_store: TrainedStore, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained_store.base_dir)
    short = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Arr."}]}
    long = {
        "messages": [
            *short["messages"],
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": "Arr " * 90},
        ]
    }
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in (short, long, short)))
    said: list[str] = []
    rows = heldout.load(str(tmp_path / "rows.jsonl"), trained_store.versions[0], {}, limit=None, say=said.append)
    kept, items = heldout.items(rows, tokenizer, 64, said.append)
    assert [item.row for item in items] == [0, 1]
    assert len(kept.rows) == 2
    assert all(isinstance(item.example, ChatExample) and item.reference == "Arr." for item in items)
    assert said == [
        "warning: 1 rows are skipped: they are duplicates",
        "warning: 1 examples exceed the model's 64 tokens and are skipped",
    ]


@pytest.mark.slow
def test_rows_that_were_all_trained_on_are_refused(trained_store: TrainedStore) -> None:
    rows = str(trained_store.directory / "rows.jsonl")
    with pytest.raises(BadInput, match="was trained on all rows"):
        heldout.load(rows, trained_store.versions[0], {"recipe.data.heldout": "0.0"}, limit=None, say=lambda _: None)


def test_every_option_has_help() -> None:
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert command.help


def loradock(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from loradock.cli.evaluate import evaluate; from loradock import cli; import click; "
    code += "cli.cli.add_command(evaluate); cli.Root.get_command = click.Group.get_command; cli.main()"
    return warm.run([sys.executable, "-c", code, "evaluate", *arguments], kind="trainer")


@pytest.mark.slow
def test_the_command_prints_what_it_found(trained_store: TrainedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_HOME", str(trained_store.settings.home))
    rows, base = str(trained_store.directory / "rows.jsonl"), str(trained_store.base_dir)
    done = loradock(f"{NAME}/2", "--data", rows, "--base", base, "--limit", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["incumbent"], found["rows"]) == (f"{NAME}/2", f"{NAME}/1", 2)
    loss, perplexity = found["metrics"]["loss"], found["metrics"]["perplexity"]
    assert perplexity["base"] == pytest.approx(math.exp(loss["base"]), rel=1e-3)
    assert loss["less_incumbent"]["low"] <= loss["less_incumbent"]["mean"] <= loss["less_incumbent"]["high"]
    assert "warning" not in done.stderr.lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (["--metric", "bleu"], 2, "there is no metric 'bleu'"),
        (["--metric", "mine.py:f"], 5, r"there is no file mine\.py"),
        (["--data", "no.jsonl"], 5, "there is no file or directory"),
        (["--data", "{empty}"], 2, r"empty\.jsonl cannot be used"),
        (["--replica", "http://127.0.0.1:9"], 6, r"no endpoint answers at http://127\.0\.0\.1:9"),
        (["--replica", "127.0.0.1:9"], 2, "is not a URL"),
    ],
)
def test_what_cannot_be_meant_is_told(
    trained_store: TrainedStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("LORADOCK_HOME", str(trained_store.settings.home))
    (tmp_path / "empty.jsonl").write_text("")
    write_rows(tmp_path, 3)
    given = ["--data", str(tmp_path / "rows.jsonl"), "--base", str(trained_store.base_dir)]
    given += [part.format(empty=tmp_path / "empty.jsonl") for part in changes]
    with pytest.raises(LoradockError, match=said) as raised:
        command.main([f"{NAME}/2", *given], standalone_mode=False)
    assert raised.value.exit_code == code


@pytest.mark.slow
def test_a_base_that_was_quantised_in_training_is_held_so_again(
    settings: Settings, store: Store, tmp_path: Path, shallow_dir: Path
) -> None:
    training = {"max_steps": 1, "learning_rate": 1e-3, "logging_steps": 1, "dtype": "float32"}
    quantization = {"bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "float32"}
    source, rows = written(tmp_path, shallow_dir, method=METHOD, training=training, quantization=quantization)
    outcome = trained(source, rows, settings)
    version = versions.register(store, outcome.run_id, NAME)
    assert version.facts.base.quantization == "nf4"
    trained_store = TrainedStore(settings, store, shallow_dir, tmp_path, (outcome, outcome), (version, version))
    found = trained_store.evaluate(str(version.ref)).evidence
    assert found.value("loss", "candidate") == pytest.approx(outcome.eval_loss, abs=1e-3)
    assert found.value("loss", "base") == pytest.approx(outcome.eval_loss_before, abs=1e-3)
    assert store.client.get_run(found.run_id).data.params["base.quantization"] == "nf4"


def test_the_base_is_held_as_its_training_logged() -> None:
    base = SMOL.model_copy(update={"quantization": "fp4"})
    facts = Facts(digest="a" * 64, base=base, method="lora", rank=4, targets=(), run_id="r", data_digest="")
    version = Version(ref=parse_ref(f"{NAME}/1"), facts=facts, source="", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    prefix = "recipe.quantization.bnb_4bit_"
    logged = {f"{prefix}use_double_quant": "False", f"{prefix}compute_dtype": "bfloat16"}
    logged["recipe.training.dtype"] = "float32"
    told, untold = contestants.as_trained(version, logged), contestants.as_trained(version, {})
    assert told.quantization
    assert untold.quantization
    assert (told.training.dtype, untold.training.dtype) == ("float32", "auto")
    assert (told.quantization.kind, untold.quantization.kind) == ("fp4", "fp4")
    assert (told.quantization.bnb_4bit_use_double_quant, untold.quantization.bnb_4bit_use_double_quant) == (False, True)
    assert told.quantization.bnb_4bit_compute_dtype == "bfloat16"
    base = SMOL.model_copy(update={"quantization": "int8"})
    eight = version.model_copy(update={"facts": facts.model_copy(update={"base": base})})
    held = contestants.as_trained(eight, {}).quantization
    assert held
    assert held.kind == "int8"
