"""Tables hold the profile's numbers exactly, say what is missing, and come back from CSV as they were."""

import io

import pandas as pd
import pytest

from halfv_accel import HalfVError
from halfv_probe import frame
from halfv_probe.views.tables import FRAMES, csv

from .profiles import CURVES, made_up

CASES = {
    "all": made_up,
    "10 layers": lambda: made_up(10, 2, 7, "none"),
    "version 1.0": lambda: made_up(old=True),
    "spectra of unequal lengths": lambda: made_up(
        10, 2, 7, spectrum=[[0.5, 0.5 - i / 99][: 1 + i % 2] for i in range(11)]
    ),
}
ONE_A_DOCUMENT = ("utility", "trials", "isolated", "holds", "utility_by_stage")
RENAMED = {"flops": "flops_share", "agreement": "agreement_share", "drop": "drop_share", "kl": "kl_nats"}
RENAMED |= {"retention": "retention_share", "flops_saved": "flops_saved_share", "latency_saved": "latency_saved_share"}
RENAMED |= {"saved": "saved_share", "stable": "three_stages"}
HELD = {"ivr": "ivr_layer_by_curves", "ssr": "ssr_layer_by_curves", "mode": "ssr_mode"}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("case", CASES)
def test_a_table_comes_back_from_csv(case, name):
    table = frame(CASES[case](), name)
    text = csv(table)
    assert text.startswith(",".join(table.columns) + "\n") and "\r" not in text
    assert text.count("\n") == 1 + len(table)
    how = dict(float_precision="round_trip", keep_default_na=False, na_values=[""])
    again = pd.read_csv(io.StringIO(text), dtype=dict(table.dtypes), **how)
    pd.testing.assert_frame_equal(again, table, check_exact=True, check_index_type=False)


@pytest.mark.parametrize("name", ONE_A_DOCUMENT)
def test_a_row_is_a_document(name):
    profile = made_up()
    documents, table = getattr(profile.evidence, name), frame(profile, name)
    assert len(table) == len(documents) > 0
    for document, (_, row) in zip(documents, table.iterrows(), strict=True):
        for field, value in document.model_dump().items():
            column = (RENAMED | HELD if name == "holds" else RENAMED).get(field, field)
            value = " ".join(map(str, value)) or None if isinstance(value, list) else value
            if value is None:
                assert pd.isna(row[column])
            else:
                assert row[column] == value


def test_curves_are_the_profiles():
    evidence, table = made_up().evidence, frame(made_up(), "entropy")
    assert table["boundary"].tolist() == list(range(29))
    for curve in CURVES:
        assert table[f"entropy_{curve}_nats"].tolist() == evidence.entropy[curve]
        assert table[f"entropy_{curve}_std_nats"].tolist() == evidence.entropy_std[curve]
        assert table[f"random_weights_entropy_{curve}_nats"].tolist() == evidence.null.entropy[curve]
    assert table["maturity_share"].tolist() == evidence.maturity
    by_layer = {"layer_kl_nats": evidence.layer_kl, "attention_to_visual_share": evidence.attention_to_visual}
    for column, curve in by_layer.items():
        assert table[column][:-1].tolist() == frame(made_up(), "redundancy")[column].tolist() == curve
        assert pd.isna(table[column].iloc[-1])  # there is no layer behind the last


def test_every_k_has_its_curves_and_the_profiles_own_is_among_them():
    evidence, table = made_up().evidence, frame(made_up(), "entropy_by_k")
    assert table["k"].unique().tolist() == [2, 4, 8, 12, 16]
    for k, rows in table.groupby("k"):
        for curve in CURVES:
            expected = evidence.entropy[curve] if k == evidence.k else evidence.entropy_by_k[str(k)][curve].mean
            assert rows[f"entropy_{curve}_nats"].tolist() == expected
    assert frame(made_up(old=True), "entropy_by_k")["k"].unique().tolist() == [12]


def test_integers_stay_integers_where_one_is_missing():
    for profile in (made_up(), made_up(mode="none", trials=made_up(mode="none").evidence.trials[:1])):
        layers = frame(profile, "trials")["ssr_layer"]
        assert layers.dtype == "Int64"
        assert [None if pd.isna(layer) else layer for layer in layers] == [
            trial.ssr_layer for trial in profile.evidence.trials
        ]
    named = frame(made_up(), "witnesses")
    assert named["layer"].dtype == "Int64" and named["layer"].isna().sum() == 2


def test_verdicts_and_votes_are_missing_where_there_is_none():
    said = frame(made_up(), "verdicts").set_index("choice")
    assert said.loc["ssr", "by_curve"] == "20" and pd.isna(said.loc["mode", "by_curve"])
    votes = frame(made_up(), "votes")
    assert {(row.choice, row.value): row.share_of_resamples for row in votes.itertuples()} == {
        (choice, value): share for choice, shares in made_up().evidence.votes.items() for value, share in shares.items()
    }


@pytest.mark.parametrize("name", sorted(set(FRAMES) - {"entropy", "entropy_by_k", "redundancy"}))
def test_what_an_old_profile_does_not_hold_is_a_table_without_rows_and_of_the_same_types(name):
    old, new = frame(made_up(old=True), name), frame(made_up(), name)
    assert len(old) == 0 < len(new)
    if name != "spectrum":  # whose columns are the eigenvalues that there are
        assert old.dtypes.to_dict() == new.dtypes.to_dict()


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(HalfVError, match="'entropies'") as refusal:
        frame(made_up(), "entropies")
    assert all(name in str(refusal.value) for name in FRAMES)
