"""The photo that the tests of images encode."""

import numpy as np
import pytest

import pictures


@pytest.fixture
def photo() -> np.ndarray:
    return pictures.photo()
