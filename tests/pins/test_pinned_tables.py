"""The committed tables, byte for byte, from the committed runs."""

import hashlib

import pytest
from pinned import ROOT, check, copy_committed, differing_files, has_runs, lsa

STUDIES = {
    "toy": ["all", "table9", "table10"],
    "proxy": ["all", "terms_by_area"],
    "paper": ["table6", "table7", "table8"],
}


@pytest.mark.parametrize("tier", STUDIES)
def test_tables_are_rebuilt_byte_for_byte(tmp_path, tier):
    copy_committed(tmp_path, tier)
    lsa("table", *STUDIES[tier], "--tier", tier, "--results", tmp_path)
    assert differing_files(tmp_path / tier / "tables", ROOT / "results" / tier / "tables") == []


@pytest.mark.parametrize("tier", [*filter(has_runs, STUDIES)])
def test_reading_the_committed_runs_does_not_change_them(tmp_path, tier):
    copy_committed(tmp_path, tier)
    lsa("table", "table1", "--tier", tier, "--results", tmp_path)
    kept, committed = (place / tier / "runs.parquet" for place in (tmp_path, ROOT / "results"))
    assert kept.read_bytes() == committed.read_bytes()


@pytest.mark.parametrize("tier", STUDIES)
def test_check_finds_no_difference_in_a_clone(tier):
    told = lsa("table", *STUDIES[tier], "--tier", tier, "--check")
    assert told.out == "all cells rebuilt\n"


@pytest.mark.parametrize("tier", STUDIES)
def test_the_committed_files_are_the_pinned_ones(tier):
    folder = ROOT / "results" / tier
    paths = [*(folder / "tables").iterdir(), *folder.glob("runs.parquet")]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    check("tables", tier, digests)


@pytest.mark.parametrize("tier", ["toy", "proxy"])
def test_claims_get_the_pinned_verdicts(tmp_path, tier):
    copy_committed(tmp_path, tier)
    claims = lsa("claims", "--tier", tier, "--json", "--results", tmp_path).json()["claims"]
    kept = ("verdict", "estimate", "low", "high", "n", "paper")
    check("claims", tier, {one["id"]: {key: one[key] for key in kept} for one in claims})
