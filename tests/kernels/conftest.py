"""The fixture ``lanes``: a test with the C++ kernels of 8 floats a vector, then of 16."""

import pytest
from exactness import LANES, vectors_of


@pytest.fixture(params=LANES, ids=lambda number: f"{number} lanes")
def lanes(request):
    with vectors_of(request.param):
        yield request.param
