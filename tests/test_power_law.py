"""Power laws with a free limit: against scipy, and planted truth."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from analysis.power_law import EXPONENT_BOUNDS, fit_power_laws

WIDTHS = np.array([32.0, 64, 128, 256, 512])


def test_agrees_with_scipy_on_noisy_rows() -> None:
    rng = np.random.default_rng(1)
    rows = 1.3 + 1.1 * (WIDTHS / 32) ** -0.63 + 0.003 * rng.standard_normal((20, 5))
    errors = np.array([0.002, 0.004, 0.003, 0.003, 0.006])
    laws = fit_power_laws(WIDTHS, rows[..., None], errors[:, None], bounds=EXPONENT_BOUNDS)
    for i, row in enumerate(rows):
        found, _ = curve_fit(lambda n, limit, size, e: limit + size * (n / 32) ** -e, WIDTHS, row, (1, 1, 0.5), errors)
        np.testing.assert_allclose(
            [laws.limit[i, 0], laws.amplitude[i, 0], laws.exponent[i]], found, rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("exponent", [0.17, 0.9, 1.8])
@pytest.mark.parametrize("signs", [(1.0, -1.0), (-1.0, -1.0)])
def test_two_dimensions_share_their_exponent(exponent: float, signs: tuple[float, float]) -> None:
    limits, sizes = np.array([-7.3, 2.6]), np.array([0.8, 2.1]) * signs
    values = limits + sizes * (WIDTHS[:, None] / 32) ** -exponent
    laws = fit_power_laws(WIDTHS, values[None], np.full((5, 2), 0.1), bounds=EXPONENT_BOUNDS)
    assert laws.exponent[0] == pytest.approx(exponent, rel=1e-5)
    np.testing.assert_allclose(laws.limit[0], limits, rtol=1e-4)
    np.testing.assert_allclose(laws.at(2048.0)[0], limits + sizes * 64**-exponent, rtol=1e-4)
    np.testing.assert_allclose(laws.gap(64.0)[0], sizes * 2**-exponent, rtol=1e-4)


def test_a_limit_below_the_lowest_allowed_is_set_to_it_and_the_rest_fitted_again() -> None:
    """A steady fall in log n runs to minus infinity; with the limit at 0 the best pure power law is left."""
    values = (3.0 - 0.5 * np.log2(WIDTHS / 32))[None, :, None]
    laws = fit_power_laws(WIDTHS, values, np.ones((5, 1)), lowest_limit=0.0, bounds=EXPONENT_BOUNDS)
    assert laws.limit[0, 0] == 0.0
    found, _ = curve_fit(lambda n, size, e: size * (n / 32) ** -e, WIDTHS, values[0, :, 0], (3.0, 0.3))
    assert (laws.amplitude[0, 0], laws.exponent[0]) == pytest.approx(found, rel=1e-4)


def test_an_exponent_stays_within_its_bounds() -> None:
    steady = np.log2(WIDTHS)[None, :, None]
    laws = fit_power_laws(WIDTHS, steady, np.ones((5, 1)), bounds=EXPONENT_BOUNDS)
    assert laws.exponent[0] == pytest.approx(EXPONENT_BOUNDS[0])
