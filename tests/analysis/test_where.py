"""Conditions on runs are read, never executed."""

import pytest

from lsa_study.analysis.where import Condition
from lsa_study.errors import ConfigError

COLUMNS = ["acc1", "loss", "seed", "train.lr", "train.start.row", "other.row", "model.op.norm",
           "model.op.terms"]  # fmt: skip
RUN = {
    "acc1": 46.0, "loss": None, "seed": 1, "train.lr": 0.001, "train.start.row": None,
    "other.row": 1, "model.op.norm": "softmax", "model.op.terms": '["qk", "bias"]',
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('acc1 > 45 and norm == "softmax"', True),
        ("not acc1 > 45", False),
        ("model.op.norm in ['softmax', 'identity']", True),
        ('norm not in ["softmax"] or seed == 1', True),
        ('"qk" in terms', True),
        ("45 < acc1 <= 46", True),
        ("loss > 0", False),
        ("loss <= 0", False),
        ("loss == null and start.row is None", True),
        ("loss - 1 < 0", False),
        ("-acc1 < 0 and acc1 * 2 - 1 > 90 and acc1 / 0 == null", True),
        ("lr == 1e-3", True),
    ],
)
def test_what_holds(text, holds):
    assert Condition(text, COLUMNS)(RUN) is holds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("acc > 1", "acc is no column; did you mean acc1?"),
        ("nrom == 1", "nrom is no column; did you mean norm?"),
        ("row == 1", "row may be other.row or train.start.row; write one of them"),
        ("norm == softmax", "softmax is no column"),
        ("acc1 = 45", "cannot be read; write it like"),
        ("", "cannot be read"),
        ("(" * 900, "cannot be read"),
        ("acc1 > 1 and " * 200 + "True", "too long"),
        ("acc1\x00", "cannot be read"),
        ('acc1 > "a"', "compares or adds numbers and text"),
        ('"a" * 999999999 == norm', "compares or adds numbers and text"),
        ("9 ** 9 ** 9 > 1", "is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("acc1.__class__ == 1", "acc1.__class__ is no column"),
        ("().__class__", "is not allowed"),
        ("norm.upper()", "is not allowed"),
        ("[x for x in norm]", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("f'{acc1}' == 1", "is not allowed"),
        ("(acc1 := 1)", "is not allowed"),
        ("norm[0] == 's'", "is not allowed"),
    ],
)
def test_what_is_refused(text, why):
    with pytest.raises(ConfigError, match="--where") as error:
        Condition(text, COLUMNS)(RUN)
    assert why in str(error.value)


def test_only_what_is_named_is_needed():
    assert Condition("acc1 > 1 and norm != 'x'", COLUMNS).needed == {"acc1", "model.op.norm"}
