"""The `loradock` command: one table of verbs, each a file that is imported only when it is called."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from loradock.registry.errors import LoradockError, first_line


class Verb(NamedTuple):
    """Where a verb lives, and what `loradock --help` says of it."""

    room: str
    target: str
    help: str


VERBS: Final = {
    "up": Verb("Start", "loradock.cli.up:up", "Bring up MLflow's UI and a serving replica on this machine's store."),
    "train": Verb("Train", "loradock.cli.train:train", "Train an adapter from a recipe and log the run to MLflow."),
    "plan": Verb("Train", "loradock.cli.plan:plan", "Say what a training needs before it runs, and whether it fits."),
    "methods": Verb("Train", "loradock.cli.methods:methods", "List the methods that a recipe can name."),
    "translate": Verb("Train", "loradock.cli.translate:translate", "Write another trainer's recipe as ours."),
    "register": Verb("Registry", "loradock.cli.register:register", "Make an immutable version of a run's adapter."),
    "import": Verb(
        "Registry", "loradock.cli.import_:import_", "Make a version of an adapter that was trained elsewhere."
    ),
    "reference": Verb("Registry", "loradock.cli.reference:reference", "Record the PEFT reference of a version."),
    "check": Verb("Registry", "loradock.cli.check:check", "Say whether vLLM can serve an adapter, and why not."),
    "evaluate": Verb(
        "Registry",
        "loradock.cli.evaluate:evaluate",
        "Measure a version, the incumbent and the base on the same rows.",
    ),
    "list": Verb("Registry", "loradock.cli.list:list_", "List adapters with their aliases, or one adapter's versions."),
    "show": Verb("Registry", "loradock.cli.show:show", "Show all that is known of one version."),
    "diff": Verb("Registry", "loradock.cli.diff:diff", "Show what two versions differ in, and how far apart they are."),
    "history": Verb("Registry", "loradock.cli.history:history", "Show who moved an adapter's aliases, when and why."),
    "verify": Verb("Registry", "loradock.cli.verify:verify", "Hash a version's stored bytes again."),
    "promote": Verb("Registry", "loradock.cli.promote:promote", "Move an alias to a version."),
    "policy": Verb("Registry", "loradock.cli.policy:policy", "Show or set what versions must show to be promoted."),
    "rollback": Verb("Registry", "loradock.cli.rollback:rollback", "Move an alias back to where it stood before."),
    "merge": Verb("Registry", "loradock.cli.merge:merge", "Fold one version into its base."),
    "combine": Verb("Registry", "loradock.cli.combine:combine", "Combine several versions into one."),
    "convert": Verb("Registry", "loradock.cli.convert:convert", "Convert an adapter of another method to plain LoRA."),
    "publish": Verb("Registry", "loradock.cli.publish:publish_", "Publish a version to the Hugging Face Hub."),
    "gc": Verb("Registry", "loradock.cli.gc:gc", "Delete the versions that nothing needs, and their bytes."),
    "forget": Verb(
        "Registry",
        "loradock.cli.forget:forget",
        "Delete the prompts and answers that evaluations and trainings keep, by age.",
    ),
    "serve": Verb("Serve", "loradock.cli.serve:serve", "Serve the promoted adapters on vLLM's OpenAI endpoint."),
    "status": Verb(
        "Serve", "loradock.cli.status:status", "Show the versions that serving replicas hold and answer with."
    ),
    "settings": Verb(
        "Setup",
        "loradock.cli.settings:settings",
        "Show every setting: its value, its source, its meaning.",
    ),
    "completion": Verb(
        "Setup",
        "loradock.cli.completion:completion",
        "Print the script by which a shell completes verbs and refs.",
    ),
    "rollout": Verb(
        "Serve",
        "loradock.cli.rollout:rollout",
        "Shift traffic to a canary by steps, and promote it or roll it back by its live signals.",
    ),
    "keys": Verb("Serve", "loradock.cli.keys:keys", "List, add or remove the API keys of serving replicas."),
    "generate": Verb(
        "Serve", "loradock.cli.generate:generate", "Answer a file of prompts with many adapters, offline."
    ),
}


class Root(click.Group):
    """A group that imports a verb's module when the verb is called, and lists verbs by room."""

    debug = False
    """Whether an error shows its traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now; None for an unknown verb."""
        if (verb := VERBS.get(cmd_name)) is None:
            return None
        module, _, attribute = verb.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """What a shell completes a first word to: verbs from the table alone, and options."""
        verbs = [CompletionItem(name, help=verb.help) for name, verb in VERBS.items() if name.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by room, from the table alone."""
        for room in dict.fromkeys(verb.room for verb in VERBS.values()):
            with formatter.section(room):
                formatter.write_dl([(name, verb.help) for name, verb in VERBS.items() if verb.room == room])


@click.command(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="loradock", message="%(prog)s %(version)s")
def cli(debug: bool) -> None:
    """Train LoRA adapters, keep them as immutable versions, and serve what is promoted.

    A version is written NAME/NUMBER, an alias NAME@ALIAS. Settings come from the environment:
    LORADOCK_HOME (default ~/.loradock), MLFLOW_TRACKING_URI (default: a SQLite file in it).
    """
    cli.debug = debug


def main() -> None:
    """Run a command, and turn its error into one clear text on stderr and an exit code."""
    logger = logging.getLogger("loradock.registry")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    if "_LORADOCK_COMPLETE" in os.environ:
        importlib.import_module("loradock.cli.completion")  # how bash hands over a word with an @ in it
    try:
        cli.main(prog_name="loradock", standalone_mode=False)
    except click.exceptions.Abort:
        _stop("interrupted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LoradockError as error:
        if cli.debug:
            raise
        _stop(error.text, error.exit_code)
    except BrokenPipeError:  # the reader of a pipe left; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # whatever the libraries raise
        if "--debug" in sys.argv:
            raise
        told = LoradockError(f"{type(error).__name__}: {first_line(error)}", hint="--debug shows where it comes from")
        _stop(told.text, told.exit_code)


def _stop(message: str, code: int) -> Any:
    click.echo(f"loradock: {message}", err=True)
    sys.exit(code)
