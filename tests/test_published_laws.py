"""Published laws: the values their formulas give, the units they were fitted in, and the band beside a fit."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.interval import FitError
from analysis.published_laws import HYPERBOLA, LAWS, LR_POWERS, OVERHEAD_20, BatchDefinition, LawKind, band, law_of

PLACES = ((1e8, 2e9), (1e9, 2e10), (7e9, 1.4e11))
# Worked out by hand from the published formulas, batches in millions of tokens.
TABLE: tuple[tuple[LawKind, str, tuple[str, str, str]], ...] = (
    ("lr", "Step Law", ("0.0025", "0.0010", "0.00045")),
    ("lr", "DeepSeek", ("0.0017", "0.00096", "0.00059")),
    ("lr", "Porian", ("0.0048", "0.0022", "0.0012")),
    ("batch", "Step Law", ("0.12", "0.44", "1.34")),
    ("batch", "DeepSeek", ("0.24", "1.08", "3.86")),
    ("batch", "Porian", ("0.31", "1.44", "5.3")),
    ("batch", "Power Lines", ("0.23", "0.55", "1.16")),
    ("critical_batch", "Power Lines", ("1.9", "5.5", "13.6")),
    ("critical_batch", "Zhang", ("0.42", "1.23", "3.1")),
)


@pytest.mark.parametrize(("kind", "name", "values"), TABLE)
def test_a_law_gives_what_its_formula_does(kind: LawKind, name: str, values: tuple[str, ...]) -> None:
    law, unit = law_of(kind, name), 1.0 if kind == "lr" else 1e6
    for (n_params, tokens), value in zip(PLACES, values, strict=True):
        last_digit = 10.0 ** -len(value.split(".")[1])
        assert law.at(n_params, tokens) / unit == pytest.approx(float(value), abs=0.5 * last_digit), (n_params, value)


def test_laws_from_the_loss() -> None:
    assert law_of("batch", "MiniCPM").at(1e9, 2e10, loss=2.5) == pytest.approx(1.21e9 / 2.5**6.24)
    assert law_of("critical_batch", "Kaplan").at(1e9, 2e10, loss=3.0) == pytest.approx(2e8 / 3.0**4.762, rel=1e-3)
    with pytest.raises(FitError, match=r"Kaplan predicts from the loss, in nats a token; give one above 0, got None"):
        law_of("critical_batch", "Kaplan").at(1e9, 2e10)
    without = band("batch", 1e9, 2e10)
    assert without.left_out == ("MiniCPM predicts from a loss",)
    assert {p.law.name for p in band("batch", 1e9, 2e10, loss=2.5).predictions} == {
        *(p.law.name for p in without.predictions), "MiniCPM",
    }  # fmt: skip


@pytest.mark.parametrize(("n_params", "tokens"), PLACES)
def test_definitions_explain_a_factor_of_five(n_params: float, tokens: float) -> None:
    """20 % overhead is a fifth of the hyperbola's constant, and so do Zhang's and Power Lines' laws lie apart."""
    zhang, power_lines = (law_of("critical_batch", name) for name in ("Zhang", "Power Lines"))
    assert 4.3 < power_lines.at(n_params, tokens) / zhang.at(n_params, tokens) < 5
    found = band("critical_batch", n_params, tokens)
    assert found.definition == HYPERBOLA
    assert found.spread < 1.2
    as_overhead = band("critical_batch", n_params, tokens, definition=OVERHEAD_20)
    assert as_overhead.high == pytest.approx(0.2 * found.high)


def test_laws_of_one_kind_lie_far_apart() -> None:
    spreads = [band(kind, n, d).spread for kind in ("lr", "batch") for n, d in PLACES]
    assert min(spreads) > 2
    assert max(spreads) < 6
    found = band("batch", *PLACES[1])
    assert found.low == law_of("batch", "Step Law").at(*PLACES[1])
    assert found.high == law_of("batch", "Porian").at(*PLACES[1])


@given(st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_definitions_convert_there_and_back(one: float, other: float) -> None:
    a, b = BatchDefinition(overhead=one), BatchDefinition(overhead=other)
    assert a.factor_to(b) * b.factor_to(a) == pytest.approx(1.0)
    assert a.factor_to(HYPERBOLA) == pytest.approx(1 / one)


def test_every_law_says_where_it_is_from() -> None:
    for law in LAWS:
        assert law.unit
        assert law.formula
        assert (law.definition is not None) == (law.kind == "critical_batch")
        year, number = law.arxiv.split(".")
        assert (len(year), len(number)) == (4, 5)
    keys = sorted((law.kind, law.name) for law in LAWS)
    assert all(a != b for a, b in pairwise(keys))
    assert [power.name for power in LR_POWERS if power.upper_bound] == ["square root"]
    by_condition = {power.name: power for power in LR_POWERS if power.scale == "train_tokens"}
    assert by_condition["Bjorck"].value < 0 < by_condition["Step Law"].value  # batch fixed, batch co-scaled


def test_where_a_law_was_fitted() -> None:
    step = law_of("batch", "Step Law")
    assert step.covers(2.15e8, 1e10)
    assert not step.covers(7e9, 1e10)
    assert not step.covers(2.15e8, 1e13)
    assert law_of("batch", "DeepSeek").covers(1e9, 1e10) is None


def test_refuses_what_is_no_scale() -> None:
    with pytest.raises(FitError, match="n_params and train_tokens above 0"):
        law_of("lr", "Step Law").at(0, 1e9)
    with pytest.raises(FitError, match=r"no published law of lr is called 'Chinchilla'; there are Step Law"):
        law_of("lr", "Chinchilla")
    with pytest.raises(FitError, match="overhead must be above 0"):
        BatchDefinition(overhead=0.0)
    with pytest.raises(FitError, match="above 0"):
        band("lr", 1e9, -1.0)
