import io

import numpy as np
import pytest
from PIL import Image

from lsa_study.config import study
from lsa_study.data import imagenet, in_memory


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """No test sees another's data, cache or environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LSA_DATA", raising=False)
    in_memory._read.cache_clear()
    imagenet.listings.cache_clear()


@pytest.fixture
def settings():
    """Make the settings of table 1's baseline, changed."""

    def make(tier="toy", seed=0, **changes):
        overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        (run,) = study.load_study(
            "table1", tier=tier, only="swin", seeds=[seed], overrides=overrides
        ).runs()
        return run.settings

    return make


@pytest.fixture
def encoded():
    """Encode random pictures; seeds give the same pictures again."""

    def make(seed: int, height=32, width=32, form="PNG") -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        return buffer.getvalue()

    return make
