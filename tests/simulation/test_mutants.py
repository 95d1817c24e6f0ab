"""The simulation finds the faults planted for it; in `make soak`, since each takes up to some thousand seeds."""

from __future__ import annotations

import pytest

from tests.conftest import SOAK
from tests.simulation.mutants import MUTANTS, UNSEEN, seeds_until_found
from tests.simulation.runner import ROOT

MOST = 4000


@pytest.mark.soak
@pytest.mark.limit(3600)
@pytest.mark.skipif(not SOAK, reason="an hour and more")
@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.name not in UNSEEN], ids=lambda each: each.name)
def test_mutant_is_found(mutant, figures):
    count, figures["by"] = seeds_until_found(mutant, MOST)
    figures["seeds"] = count
    assert count is not None


def test_unseen_mutants_are_among_them():
    assert set(UNSEEN) <= {each.name for each in MUTANTS}


def test_every_mutant_can_be_planted():
    """Each names one place of the source, as it is now."""
    text = {mutant.module: (ROOT / "gstalk" / mutant.module).read_text("utf-8") for mutant in MUTANTS}
    assert [mutant.name for mutant in MUTANTS if text[mutant.module].count(mutant.old) != 1] == []
