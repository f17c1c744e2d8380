"""The planted faults fit to this tree and name tests that are there; `make test-power` shows that these fail."""

from __future__ import annotations

import pytest

from tests.support.faults.fault import Fault, faults


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_a_fault_fits_and_names_tests_that_are_there(fault: Fault) -> None:
    assert fault.misfit == ""
    assert fault.caught_by
    assert fault.lost == []
    assert fault.about
