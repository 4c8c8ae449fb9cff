"""One export for all tests of this folder: making it takes seconds."""

from pathlib import Path

import pytest
from hand_made import hand_made_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_made_export(tmp_path_factory.mktemp("hand_made") / "export")
