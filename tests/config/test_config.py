"""Settings: what is refused and with which message, and what an identity depends on."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsa_study.config import study, yaml
from lsa_study.config.protocol import TokenLabels
from lsa_study.config.settings import Settings, flatten
from lsa_study.errors import ConfigError

RESULTS = Path(__file__).resolve().parents[2] / "results"


def settings(*overrides, name="table1", variant="swin", tier="toy") -> Settings:
    return study.load_study(name, tier=tier, overrides=overrides).variants[variant]


def mistakes(*overrides, name="table1", tier="toy") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        study.load_study(name, tier=tier, overrides=overrides)
    return list(caught.value.mistakes)


def test_all_mistakes_are_named_at_once_with_the_nearest_name():
    found = mistakes("foo", "train.epohcs=3", "model.op.nrm=softmax", "train.lr=1e-3", "modle.x=1")
    assert sorted(found) == [
        "--set foo: not a setting; write --set key=value",
        "--set model.op.nrm=softmax: model.op.nrm is not a setting; did you mean model.op.norm?",
        "--set modle.x=1: modle is not a setting; did you mean model?",
        "--set train.epohcs=3: train.epohcs is not a setting; did you mean train.epochs?",
        "--set train.lr=1e-3: train.lr = '1e-3' was read as text: YAML wants a dot and a sign in "
        "exponents; write it like 1.0e-3",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=3OO", "train.epochs = '3OO' is not a number; give one"),
        ("train.epochs=0", "train.epochs = 0 will not do; it should be greater than 0"),
        ("train.epochs=2.5", "train.epochs = 2.5 will not do"),
        ("train.epochs=yes", "train.epochs = True will not do"),
        ("model.drop_path=1.5", "model.drop_path = 1.5 will not do"),
        ("model.op.heads=4", "it should be '1', '1x', '2x' or 'C'"),
        ("model.op.norm=sofmax", "it should be 'identity', 'filter_norm' or 'softmax'"),
        ("model.op={kind: elza}", "model.op.kind = 'elza' is no operator; known: unified, elsa"),
        ("model.op={terms: [qk]}", "model.op.kind is missing; give one of unified"),
        ("evaluation.weights=ema", "train.ema_decay is null; give a decay"),
        ("model.op.border=mask", "border='mask' changes nothing in a window"),
        ("model.op.implementation=sdc", "implementation='sdc' changes nothing in a window"),
        ("seed", "not a setting; write --set key=value"),
        ("train.lr.x=1", "train.lr.x: train.lr is a value, not a group"),
        ("tier=paper", "--set tier=paper: tier comes from --tier; drop it"),
        ("seed=0", "--set seed=0: seed comes from seeds: or --seeds; drop it"),
        ("model=3", "model = 3 is not a group of settings; give {name: value}"),
        ("model.op=3", "model.op = 3 is not a group of settings; give {name: value}"),
        ("train..lr=1", "--set train..lr=1: 'train..lr' is not a setting; give names between"),
        ("train.x.y=1", "--set train.x.y=1: train.x is not a setting; known here: batch_size"),
    ],
)
def test_a_wrong_value_is_named(override, message):
    assert any(message in line for line in mistakes(override)), mistakes(override)


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=.inf", "train.lr=.nan", "train.lr=1.0e+31", "train.min_lr=-.inf",
        "train.warmup_epochs=.inf", "train.weight_decay=.inf", "train.clip_grad=.inf",
        "train.batch_size=10000000000", "train.lr_batch=10000000000", "train.epochs=10000000",
        "train.norm_batch=99999999", "data.image_size=1000000", "data.train_limit=1e99",
        "model.op.size=99999", "augment.crop_scale=[0.9, 0.1]",
        "augment.crop_scale=[.nan, 1.0]", "augment.crop_scale=[0.0, 1.0]", "augment.crop_pad=99999",
        "augment.crop_scale=[0.5, 1.5]", "augment.crop_ratio=[2.0, 0.5]", "augment.mixup=.inf",
        "augment.crop_ratio=[-1.0, 1.0]", "augment.color_jitter=.inf", "augment.cutmix=1.0e+9",
        "augment.rand_augment=strong", "augment.rand_augment=rand-m9-x3", "augment.rand_augment=''",
        "runtime.checkpoint_seconds=.inf", "runtime.log_seconds=.nan", "runtime.workers=100000",
        "evaluation.crop_share=1.0e-9", "evaluation.batch_size=99999999999",
        "train.tokens={labels: plain, mix_token: .inf}", "model.op={kind: ddf, reduction: 1.0e-9}",
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_when_it_is_read(override):
    key = override.partition("=")[0]
    assert any(line.startswith(f"--set {override}: {key}") for line in mistakes(override))


def test_policies_of_randaugment_are_those_that_timm_builds():
    from timm.data.auto_augment import rand_augment_transform

    for policy in ("rand", "rand-m9", "rand-m9-mstd0.5-inc1", "rand-m15-n3-p0.3-mmax20-mstd101",
                   "rand-tweights-m7", "rand-t3a-inc0-p1", "rand-t3aw-n2-p1.0"):  # fmt: skip
        assert settings(f"augment.rand_augment={policy}").augment.rand_augment == policy
        rand_augment_transform(policy, {"translate_const": 9, "img_mean": (0, 0, 0)})
    for policy in ("m9", "Rand-m9", "rand-", "rand-m9-", "rand-m9.5", "rand-inc2", "rand-p7",
                   "rand-k3", "rand-n0", "rand-m-9", "rand m9", "rand-mstdinf"):  # fmt: skip
        assert (
            "is no RandAugment policy; write it as timm does"
            in mistakes(f"augment.rand_augment={policy}")[0]
        )


def test_a_wrong_word_is_answered_with_the_nearest():
    assert mistakes("model.backbone=swin_mikro")[0].endswith("did you mean swin_micro?")


def test_an_even_area_cannot_be_centred():
    found = mistakes("model.op.size=8", name="table3")
    assert "size=8: 'neighboring' centres an area on every pixel" in found[0]
    assert "(in swin_n, net4_n, net6_n, net7_n_sdc, net7_n_unfold)" in found[0]
    assert settings("model.op.size=8").model.op.size == 8  # a window may be even


def test_terms_are_a_set_in_the_articles_order():
    one = load("model.op.terms=[bias, qk]")
    assert one.model.op.terms == ("qk", "bias")


def test_terms_given_twice_are_refused():
    with pytest.raises(ConfigError):
        load("model.op.terms=[qk, qk]")


def load(*overrides, variant="swin"):
    loaded = study.load_study("table1", only=variant, overrides=overrides)
    return loaded.variants[variant]


@pytest.mark.parametrize(
    "override",
    ["train.epochs=3", "train.lr=0.1", "train.batch_size=8", "data.train_limit=9",
     "data.test_limit=9", "model.drop_path=0.3", "augment.hflip=0.5", "train.precision=amp",
     "model.op.norm=identity"],
)  # fmt: skip
def test_science_moves_the_identity(override):
    assert load(override).identity() != load().identity()


@pytest.mark.parametrize(
    "override",
    [
        "runtime.workers=4",
        "runtime.device=cpu",
        "runtime.accumulate=2",
        "runtime.tracker=wandb",
        "data.root=/data",
    ],
)
def test_how_a_run_is_carried_out_does_not(override):
    assert load(override).identity() == load().identity()


def test_a_setting_younger_than_the_results_counts_only_where_it_is_set():
    assert "test_limit" not in load().science()["data"]
    assert load("data.test_limit=9").science()["data"]["test_limit"] == 9
    assert "validation" not in load().science()["data"]
    assert load("data.validation=90").science()["data"]["validation"] == 90


@pytest.mark.parametrize(("overrides", "message"), [
    (["data.validation=9"],
     "data: validation=9 has fewer than one image of each of the 10 classes; give 10 to 1,290"),
    (["data.validation=1291"], "of 1,300 images to train on; give 10 to 1,290"),
    (["data.validation=99", "data.train_limit=96"], "of 96 images to train on; give 10 to 86"),
    (["data.validation=10", "data.train_limit=16"], "to train on; raise data.train_limit"),
    (["data.validation=0"], "data.validation"), (["data.validation=0.1"], "data.validation"),
    (["data.validation=many"], "data.validation"),
])  # fmt: skip
def test_images_that_training_cannot_spare_are_not_held_out(overrides, message):
    with pytest.raises(ConfigError) as error:
        load(*overrides)
    assert message in str(error.value)


def test_an_identity_is_the_hash_of_canonical_json():
    # Pinned: a change here re-runs everybody's finished grids. Raise SCHEMA_VERSION knowingly.
    assert load().identity() == study.load_study("table1").runs()[0].identity
    assert len(load().identity()) == 10
    reread = Settings.model_validate_json(load().model_dump_json())
    assert reread.identity() == load().identity()


VOLO = (
    "model.backbone=volo_d1", "augment.mixup=0.0", "augment.cutmix=0.0",
    "train.tokens={labels: plain}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone=swin_tiny"],
         "model.backbone=swin_tiny: token labels need VOLO's token head; give a volo backbone"),
        (["augment.mixup=0.8"], "augment.mixup=0.8, augment.cutmix=0.0: mixed images have no"),
        (["augment.cutmix=1.0"], "augment.mixup=0.0, augment.cutmix=1.0: mixed images have no"),
        (["runtime.compile=true"], "runtime.compile=True: tokens are mixed in another box"),
        (["train.tokens.labels=maps", "augment.crop=pad"],
         "augment.crop='pad': label maps follow random_resized crops alone"),
        (["train.tokens.labels=maps", "data.name=cifar10"],
         "train.tokens.labels='maps': there are no label maps of cifar10; give labels: plain"),
        (["train.tokens.labels=map"], "it should be 'plain', 'maps' or 'maps_and_truth'"),
        (["train.tokens={}"], "train.tokens.labels is missing; it has no default"),
        (["train.tokens.dense_wieght=1"], "did you mean train.tokens.dense_weight?"),
        (["train.tokens.mix_token=-1.0"], "train.tokens.mix_token = -1.0 will not do"),
        (["train.tokens.class_weight=0.0"], "train.tokens.class_weight = 0.0 will not do"),
    ],
)  # fmt: skip
def test_token_labels_that_do_not_fit_are_refused(overrides, message):
    found = mistakes(*VOLO, *overrides, tier="paper")
    assert any(message in line for line in found), found


def test_token_labels_are_in_the_identity_only_where_they_are_on():
    off = settings(*VOLO[:-1], tier="paper")
    assert "tokens" not in off.science()["train"]
    on = [settings(*VOLO, *more, tier="paper") for more in (
        (), ("train.tokens.labels=maps",), ("train.tokens.dense_weight=0.4",),
        ("train.tokens.mix_token=0.8",), ("train.tokens.class_weight=0.9",),
    )]  # fmt: skip
    assert len({one.identity() for one in (off, *on)}) == 6
    assert (
        on[0].identity()
        == settings(*VOLO, "train.tokens.dense_weight=0.5", tier="paper").identity()
    )
    assert on[0].train.tokens == TokenLabels(labels="plain")
    assert [one.reads()[2] for one in on] == [False, True, False, False, False]


def test_identities_of_runs_whose_results_are_kept():
    """Pinned: new settings must be left out of the identity while they are off."""
    kept = pd.read_parquet(RESULTS / "toy" / "runs.parquet", columns=["variant", "identity"])
    runs = {run.variant: run.identity for run in study.load_study("table1", tier="toy").runs()}
    assert {name: runs[name] for name in ("swin", "net7")} == {
        "swin": "f34ba855ce", "net7": "19e59a6d7c",
    }  # fmt: skip
    assert set(runs.values()) <= set(kept["identity"])


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": None}}}) == {"a.b": 1, "a.c.d": None}


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


class TestYaml:
    def read(self, tmp_path, text):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return yaml.read(path)

    def refusal(self, tmp_path, text):
        with pytest.raises(ConfigError) as caught:
            self.read(tmp_path, text)
        return str(caught.value).replace(str(tmp_path), "")

    def test_tab(self, tmp_path):
        found = self.refusal(tmp_path, "a:\n\tb: 1\n")
        assert found == "/x.yaml:2:1: tab used for indentation; use two spaces"

    def test_key_twice(self, tmp_path):
        found = self.refusal(tmp_path, "a: 1\nb: {c: 1}\na: 2\n")
        assert found == "/x.yaml:3: a is set twice (first in line 1); keep one"

    def test_broken(self, tmp_path):
        assert "/x.yaml:2:1: did not find expected" in self.refusal(tmp_path, "a: {b: 1\n")

    def test_odd_key(self, tmp_path):
        assert "cannot be a key; quote it" in self.refusal(tmp_path, "no: 1\n[1]: 2\n")

    def test_not_a_mapping(self, tmp_path):
        assert "holds no settings" in self.refusal(tmp_path, "- 1\n")
        assert "holds no settings" in self.refusal(tmp_path, "")

    def test_objects_are_not_built(self, tmp_path):
        for text in ("a: !!python/object/apply:os.getcwd []\n", "a: !!python/name:os.getcwd\n"):
            assert self.refusal(tmp_path, text).startswith("/x.yaml:1")
        assert "use plain values" in self.refusal(tmp_path, "a: !thing {b: 1}\n")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("!!bool maybe", "'maybe' is not true or false"),
            ("!!float x", "'x' is not a number"),
            ("!!int ''", "'' is not a number"),
            ("!!timestamp x", "timestamp is unknown; quote it"),
            ("!!binary eA==", "binary is unknown; quote it"),
            ("2024-02-30", "'2024-02-30' would be a timestamp; quote it"),
            ("1:30", "'1:30' is read in base 8 or 60"),
            ("0777", "'0777' is read in base 8 or 60"),
            ("1" * 6000, "too long for a number"),
            ("0x" + "f" * 6000, "too long for a number"),
            (r'"\e[31m"', r"holds the control character '\x1b'; drop it"),
            (r'{"\0": 1}', r"holds the control character '\x00'; drop it"),
            (r'"\ud800"', None),
            ("\x9b", r"holds the control character '\x9b'; drop it"),
            ("&b [*b]", "*b stands for nothing written before"),
            ("&b {c: {d: *b}}", "*b stands for nothing written before"),
            ("*b", "*b stands for nothing written before"),
            ("[" * 40 + "]" * 40, "nested over 30 deep"),
            ("[" * 40_000 + "]" * 40_000, None),
            ("1\n---\nb: 2", "a second document begins; keep one"),
            ("{[1]: 2}", "a list or mapping cannot be a key"),
        ],
    )
    def test_what_is_not_plain(self, tmp_path, value, message):
        found = self.refusal(tmp_path, f"first: 1\na: {value}\n")
        assert found.startswith("/x.yaml:"), found
        assert message is None or message in found

    def test_aliases_are_counted_each_time(self, tmp_path):
        doubled = "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(25))
        assert "aliases counted" in self.refusal(tmp_path, f"a0: &a0 [x, x]\n{doubled}")
        deeper = "".join(f"a{i + 1}: &a{i + 1} [[[*a{i}]]]\n" for i in range(12))
        assert "nested over" in self.refusal(tmp_path, f"a0: &a0 [x]\n{deeper}")
        found = self.read(tmp_path, "a: &a [1, {b: 2}]\nc: [*a, *a]\nd: &s 3\ne: *s\n").data
        assert found["c"] == [found["a"]] * 2
        assert found["e"] == 3

    def test_other_systems_files(self, tmp_path):
        path = tmp_path / "x.yaml"
        path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: [2]\r\n")
        assert yaml.read(path).data == {"a": 1, "b": [2]}
        path.write_bytes("a: 1".encode("utf-16"))
        with pytest.raises(ConfigError, match=r"x\.yaml:1: is not UTF-8; save the file as UTF-8"):
            yaml.read(path)

    def test_no_file_of_text(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.yaml")
        (tmp_path / "large.yaml").write_bytes(b"#" * 3_000_000)
        for name, message in (
            ("pipe.yaml", "is no file"),
            ("large.yaml", "is over"),
            ("", "is no"),
        ):
            with pytest.raises(ConfigError, match=message):
                yaml.read(tmp_path / name)

    def test_a_value_of_the_command_line(self):
        assert yaml.parse("1.5") == 1.5
        assert yaml.parse("a: b: c") == "a: b: c"
        assert yaml.parse("") is None
        for text in ("{a: 1, a: 2}", "&a [*a]", "!!float x", "\x1b"):
            with pytest.raises(ConfigError, match=r"^--set k: "):
                yaml.parse(text, "--set k")

    def test_missing_file(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            yaml.read(tmp_path / "none.yaml")

    def test_lines(self, tmp_path):
        document = self.read(tmp_path, "a:\n  b:\n    c: 1\n")
        assert document.where("a", "b", "c").endswith(":3")
        assert document.where("a", "b", "zzz").endswith(":2")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | ASCII,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ASCII, inner, max_size=3),
            max_leaves=8,
        )
    )
    def test_what_json_writes_is_read_back(self, tmp_path_factory, value):
        path = tmp_path_factory.mktemp("yaml") / "x.yaml"
        path.write_text(json.dumps({"top": value}), "utf-8")
        assert yaml.read(path).data == {"top": value}
