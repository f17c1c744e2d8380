"""No user and no password of a store's address is ever shown."""

from __future__ import annotations

import pytest
import sqlalchemy
from hypothesis import assume, given
from hypothesis import strategies as st

from loradock.registry.store import masked

PRINTABLE = st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=("Z", "C"))
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
"""Of every character, spaces, line ends and controls included."""
SECRET_NAMES = ("password", "PASSWORD", "sslpassword", "pass%77ord", "token", "passfile")


@given(user=st.text(PRINTABLE, max_size=8), password=ANY)
def test_an_address_as_sqlalchemy_writes_it_shows_no_password(user: str, password: str) -> None:
    address = sqlalchemy.URL.create("postgresql+psycopg", user or "ann", f"{password}Zz9", "db", 5432, "mlflow")
    shown = masked(address.render_as_string(hide_password=False))
    assert shown == "postgresql+psycopg://***@db:5432/mlflow"


@given(password=ANY)
def test_an_address_as_somebody_writes_it_shows_no_password(password: str) -> None:
    address = f"postgresql://ann:{password}Zz9@db/mlflow"
    for shown in (masked(address), masked(f"{address} in workspace a")):
        assert "Zz9" not in shown
        assert shown.startswith("postgresql://***@db/mlflow")


@given(name=st.sampled_from(SECRET_NAMES), value=ANY, after=st.sampled_from(["", "&sslmode=require"]))
def test_a_parameter_that_is_a_secret_is_not_shown(name: str, value: str, after: str) -> None:
    assume("&" not in value)
    address = f"postgresql://db/mlflow?application_name=a&{name}={value}Zz9{after}"
    assert masked(address) == f"postgresql://db/mlflow?application_name=a&{name}=***{after}"


@given(user=st.text(PRINTABLE, max_size=8), password=st.text(PRINTABLE, min_size=1, max_size=12))
def test_whatever_sqlalchemy_takes_as_a_password_is_not_shown(user: str, password: str) -> None:
    address = f"postgresql+psycopg://{user}:{password}Zz9@db/mlflow?sslmode=require"
    try:
        read = sqlalchemy.make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        assume(False)
    assume(read.password)
    for shown in (masked(address), masked(f"cannot reach {address} (try again)")):
        assert "Zz9" not in shown
        assert "@db/mlflow?sslmode=require" in shown
        assert read.render_as_string(hide_password=False) not in shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://mlflow:pa/ss@db/mlflow", "postgresql://***@db/mlflow"),
        ("postgresql://mlflow:p@ss@db/mlflow", "postgresql://***@db/mlflow"),
        ("postgresql://ann@db/mlflow", "postgresql://***@db/mlflow"),
        ("postgresql://db/mlflow?user=ann&password=s3cret&x=1", "postgresql://db/mlflow?user=ann&password=***&x=1"),
        ("https://ann:s3cret@mlflow.example:5000/x", "https://***@mlflow.example:5000/x"),
        ("sqlite:////home/me@x/mlflow.db", "sqlite:////home/me@x/mlflow.db"),
        ("https://mlflow.example:5000", "https://mlflow.example:5000"),
        ("API request to http://127.0.0.1:5000 failed, ask a@b.example", None),
    ],
)
def test_nothing_else_is_hidden(address: str, shown: str | None) -> None:
    assert masked(address) == (address if shown is None else shown)
