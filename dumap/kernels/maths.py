"""Elementary functions made of additions and multiplications alone: every CPU computes the same bits.

The last bits of the C library's `exp` and `pow` depend on its version and on the vector width. Results that must be
equal to the byte are computed with these functions instead.
"""

from __future__ import annotations

import numba as nb
import numpy as np

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


@nb.njit(inline="always")
def exp(x: float) -> float:
    """Return e to the x, in float64, for x <= 0; relative error below 1e-14, 0 below -700."""
    if not x > -700.0:
        return 0.0
    # e^x = 2^n e^r with |r| <= ln(2) / 2; ln(2) in two parts keeps r exact. Then e^r by its Taylor series.
    n = np.floor(x * _LOG2E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    polynomial = 1.0 / 479001600.0
    for coefficient in (
        1.0 / 39916800.0,
        1.0 / 3628800.0,
        1.0 / 362880.0,
        1.0 / 40320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ):
        polynomial = polynomial * r + coefficient
    return polynomial * np.int64((np.int64(n) + 1023) << 52).view(np.float64)


# Chebyshev interpolants of log2(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1] and of 2^f on [-1/2, 1/2].
def _chebyshev_coefficients(function, low: float, high: float, degree: int) -> tuple[np.float32, ...]:
    series = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    return tuple(
        np.float32(round(float(coefficient), 9)) for coefficient in series.convert(kind=np.polynomial.Polynomial).coef
    )


_LOG2_COEFFICIENTS = _chebyshev_coefficients(lambda t: np.log1p(t) / t / np.log(2), np.sqrt(0.5) - 1, np.sqrt(2) - 1, 7)
_EXP2_COEFFICIENTS = _chebyshev_coefficients(np.exp2, -0.5, 0.5, 5)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)  # the bits of sqrt(1/2)
_MANTISSA_MASK, _EXPONENT_BIAS = np.int32(0x7FFFFF), np.int32(127 << 23)
_ONE, _MIN_EXPONENT, _MAX_EXPONENT = np.float32(1), np.float32(-126), np.float32(127)
_ROUNDING_SHIFT = np.float32(12582912.0)  # adding 1.5 * 2^23 rounds to an integer, held in the lowest bits


@nb.njit(inline="always")
def power(x: np.float32, exponent: np.float32) -> np.float32:
    """Return x to the power `exponent` in float32, for normal x > 0; relative error near 1e-6.

    It has no branches, so that loops over it are vectorized.
    """
    # x = 2^e (1 + t) with sqrt(1/2) <= 1 + t < sqrt(2), from the bits of x; log2(x) = e + t P(t).
    shifted = np.int32(np.float32(x).view(np.int32) - _SQRT_HALF_BITS)
    e = np.int32(shifted >> 23)
    t = np.int32(np.int32(shifted & _MANTISSA_MASK) + _SQRT_HALF_BITS).view(np.float32) - _ONE
    p = _LOG2_COEFFICIENTS[7]
    p = p * t + _LOG2_COEFFICIENTS[6]
    p = p * t + _LOG2_COEFFICIENTS[5]
    p = p * t + _LOG2_COEFFICIENTS[4]
    p = p * t + _LOG2_COEFFICIENTS[3]
    p = p * t + _LOG2_COEFFICIENTS[2]
    p = p * t + _LOG2_COEFFICIENTS[1]
    p = p * t + _LOG2_COEFFICIENTS[0]
    # x^exponent = 2^y = 2^n 2^f with n a whole number and |f| <= 1/2; 2^f by a polynomial, 2^n by the exponent's bits.
    y = exponent * (np.float32(e) + p * t)
    y = min(max(y, _MIN_EXPONENT), _MAX_EXPONENT)
    rounded = y + _ROUNDING_SHIFT
    n = rounded - _ROUNDING_SHIFT
    f = y - n
    q = _EXP2_COEFFICIENTS[5]
    q = q * f + _EXP2_COEFFICIENTS[4]
    q = q * f + _EXP2_COEFFICIENTS[3]
    q = q * f + _EXP2_COEFFICIENTS[2]
    q = q * f + _EXP2_COEFFICIENTS[1]
    q = q * f + _EXP2_COEFFICIENTS[0]
    exponent_bits = np.int32(np.int32(np.float32(rounded).view(np.int32) << 23) + _EXPONENT_BIAS)
    return q * np.int32(exponent_bits).view(np.float32)
