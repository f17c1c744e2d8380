"""What libraries say, in the line that says it."""

from __future__ import annotations

import pytest

from loradock.registry.errors import first_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("out of memory\ntry less", "out of memory"),
        ("\n   No kernel image.\n", "No kernel image."),
        ("Failed to import x:\n\n  because:\n  no module y\nmore", "Failed to import x: because: no module y"),
        ("it ends here:", "it ends here:"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
    ],
)
def test_the_first_line_that_says_something(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line


def test_torch_says_what_does_not_fit() -> None:
    import torch

    with pytest.raises(RuntimeError) as raised:
        torch.nn.Linear(2, 3).load_state_dict({"weight": torch.zeros(4, 2), "bias": torch.zeros(3)})
    assert first_line(raised.value).startswith(
        "Error(s) in loading state_dict for Linear: size mismatch for weight: copying a param with shape"
    )


def test_pydantic_says_what_it_refuses_and_never_the_value() -> None:
    from pydantic import BaseModel, ValidationError

    class Settings(BaseModel):
        rank: int

    with pytest.raises(ValidationError) as raised:
        Settings.model_validate({"rank": "s3cret"})
    assert first_line(raised.value).startswith("rank: Input should be a valid integer")
    assert "s3cret" not in first_line(raised.value)
