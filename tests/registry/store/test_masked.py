"""No user and no password of a store's address is ever shown."""

from __future__ import annotations

import pytest
import sqlalchemy
from hypothesis import assume, given
from hypothesis import strategies as st

from registry.store import masked

PRINTABLE = st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=("Z", "C"))


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
