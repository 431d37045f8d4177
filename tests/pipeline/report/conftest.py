"""Reports do not depend on the kind of store: one is enough."""

from __future__ import annotations

import pytest

from tests.pipeline.conftest import Toy


@pytest.fixture
def toy(local_toy: Toy) -> Toy:
    return local_toy
