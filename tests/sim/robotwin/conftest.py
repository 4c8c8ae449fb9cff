from __future__ import annotations

import pytest

from vla_rl.sim.environments import find_environment

NOT_INSTALLED = "RoboTwin's interpreter is not installed: vla-rl sim install robotwin"


@pytest.fixture(autouse=True)
def lite(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that start the simulator use the lite profile, and are skipped where there is no interpreter for it."""
    monkeypatch.delenv("ROBOTWIN_ASSETS_ROOT", raising=False)
    if request.module.__name__.endswith("test_simulator") and find_environment("robotwin") is None:
        pytest.skip(NOT_INSTALLED)
