"""The identities of every run of every study and tier: whoever holds results keeps them."""

import pytest
from pinned import check, lsa, read

ALL = ["table1", "table2", "table3", "table4", "table5", "fig2"]
PAPER_ONLY = ["table6", "table7", "table8"]
AT_TIER = {"toy": ALL, "proxy": ALL, "paper": [*ALL, *PAPER_ONLY]}


def names_of(runs):
    return [f"{run['name']} = {run['identity']} {run['variant']} {run['seed']}" for run in runs]


@pytest.mark.parametrize("tier", ["toy", "proxy", pytest.param("paper", marks=pytest.mark.slow)])
def test_plan_gives_the_pinned_runs(tier):
    # At the paper tier plan builds all networks, so everything is asked for at once.
    plans = lsa("plan", "all", *AT_TIER[tier], "--tier", tier, "--json").json()
    assert [plan["study"] for plan in plans] == [*ALL, *(PAPER_ONLY if tier == "paper" else ())]
    found = {
        plan["study"]: {
            "factor": plan["factor"],
            "baseline": plan["baseline"],
            "runs": names_of(plan["runs"]),
        }
        for plan in plans
    }
    assert {plan["tier"] for plan in plans} == {tier}
    check("identities", tier, found)


@pytest.mark.parametrize("tier", AT_TIER)
def test_status_lists_the_pinned_runs_as_waiting(tmp_path, tier):
    """The same runs by a command that builds no network, also where ``plan`` has to."""
    pinned = {study: set(one["runs"]) for study, one in read("identities")[tier].items()}
    pinned["all"] = set().union(*(pinned[study] for study in ALL))
    for study in ["all", *AT_TIER[tier]]:
        rows = lsa("status", study, "--tier", tier, "--json", "--results", tmp_path).json()["runs"]
        assert set(names_of(rows)) == pinned[study]


@pytest.mark.parametrize("tier", ["toy", "proxy"])
@pytest.mark.parametrize("study", PAPER_ONLY)
def test_studies_of_whole_networks_are_refused_below_the_paper_tier(study, tier):
    told = lsa("plan", study, "--tier", tier, "--json", code=2)
    assert f"{study} has no tier {tier}" in told.err


@pytest.mark.parametrize("tier", ["toy", "proxy"])
def test_identities_do_not_hang_on_data_or_on_where_it_lies(tmp_path, tier):
    plain = lsa("plan", "all", "--tier", tier, "--json").json()
    there = lsa("plan", "all", "--tier", tier, "--json", LSA_DATA=str(tmp_path)).json()
    root = f"data.root={tmp_path}"
    told = lsa("plan", "all", "--tier", tier, "--json", "--set", root).json()
    assert plain == there
    assert [names_of(one["runs"]) for one in told] == [names_of(one["runs"]) for one in plain]


def test_overrides_and_seeds_give_the_pinned_runs():
    found = {}
    for setting in [
        "train.epochs=1", "train.lr=1.0e-3", "train.batch_size=16", "data.train_limit=64",
        "model.drop_path=0.2", "data.root=/data", "runtime.workers=2",
    ]:  # fmt: skip
        plan = lsa("plan", "table3", "--only", "swin,net6", "--seeds", "0-1", "--set", setting,
                   "--json").json()  # fmt: skip
        found[setting] = names_of(plan["runs"])
    check("identities", "overrides", found)
