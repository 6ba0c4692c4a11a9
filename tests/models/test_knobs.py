"""Options that do nothing are found; those of the article's studies all do something."""

import pytest

from lsa_study import study
from lsa_study.models.knobs import dead_options


@pytest.mark.parametrize("name", [*study.ARTICLE])
def test_rows_of_the_article_all_differ(name):
    loaded = study.load(name, tier="toy")
    assert dead_options(loaded.variants) == []


def test_a_planted_dead_option_is_found():
    """Drop path does nothing in evaluation, so it stands in for an option that was never passed."""
    one = study.load("table1", only="swin").variants["swin"]
    model = one.model.model_copy(update={"drop_path": 0.3})
    twin = one.model_copy(update={"model": model})
    (words,) = dead_options({"swin": one, "twin": twin})
    assert "swin and twin compute the same" in words
