"""The verb that publishes a version: parse, call, print."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.options import force_option, json_option
from loradock.cli.output import emit
from loradock.registry import promotion, publish, refs
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command("publish", cls=Command)
@click.argument("ref", shell_complete=complete_ref)
@click.option("--repo", required=True, metavar="ORG/NAME", help="The model repository; made when there is none.")
@click.option("--public", is_flag=True, help="Publish in public; a new repository is private by default.")
@click.option("--merged", is_flag=True, help="Publish the newest model that `loradock merge REF` made.")
@click.option(
    "--license", "licence", default="", metavar="ID", help="The licence's id on the Hub.  [default: the base's]"
)
@click.option(
    "--base-model", default="", metavar="ORG/NAME", help="The base's name on the Hub, if it was loaded from a copy."
)
@force_option("Write into a repository whose newest commit is somebody else's.", kept="the version's lineage")
@json_option
def publish_(
    ref: str, repo: str, public: bool, merged: bool, licence: str, base_model: str, forced: str, as_json: bool
) -> None:
    """Publish a version to the Hugging Face Hub.

    Example:
      loradock publish support-bot/3 --repo my-org/support-bot

    The bytes are hashed again, and published unchanged with a model card in one commit. A repository that has the
    version already gets no commit. It needs a token with write access, in HF_TOKEN or from `hf auth login`.
    """
    store = Store(Settings())
    version = promotion.resolve(store, refs.parse_ref(ref))
    if merged:
        version = publish.merged_from(store, version)
    wish = publish.Wish(repo, public, licence, base_model, forced)
    done = publish.publish(store, version, wish, now=datetime.now(UTC))
    if not done.new:
        say(f"{done.repo} holds {done.version} already: nothing was committed")
    emit(done.model_dump(mode="json"), as_json)
