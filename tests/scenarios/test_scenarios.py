"""Our gateway answers the table's requests as llama-server did, but for the differences that the table gives reasons for.

`recorded.json` holds what llama-server answered, reduced to what is compared (`shape.py`). `./test --engines` builds that
server, asks it anew, rewrites the file and fails when it changed, so that somebody looks at the change. A new row
needs that, too.
"""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import oracle  # noqa: E402
from table import SCENARIOS  # noqa: E402

RECORDED = oracle.recorded()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(scenario, request):
    gateway = request.getfixturevalue("embedding_gateway" if scenario.oracle == "embedding" else "gateway")
    wrong = scenario.judge(scenario.ask(gateway.url), RECORDED[scenario.name])
    assert not wrong, "\n".join(wrong)


def test_the_table_and_the_recording_name_the_same_scenarios():
    assert len(SCENARIOS) >= 60
    assert sorted(RECORDED) == sorted({scenario.name for scenario in SCENARIOS}), "run ./test --engines to record anew"
    assert len(RECORDED) == len(SCENARIOS), "two scenarios have one name"
