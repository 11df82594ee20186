import pytest

from sitout._report._format import MINUS, Numbers, p_value, seconds, settings, significant

PER_CENT, UNIT = Numbers(per_cent=True), Numbers(per_cent=False)


@pytest.mark.parametrize("numbers", [PER_CENT, UNIT])
def test_zero_has_no_sign(numbers):
    assert numbers.difference(0.0) == numbers.difference(-0.0) == numbers.amount(0.0)
    assert not set("+-") & set(numbers.difference(0.0))


def test_what_rounds_to_zero_has_no_sign():
    assert PER_CENT.difference(-0.00004) == PER_CENT.difference(0.00004) == "0.00"


def test_classification_is_in_per_cent_and_points():
    assert PER_CENT.error(0.10456) == "10.46 %"
    assert PER_CENT.difference(0.0031) == "+0.31"
    assert PER_CENT.interval(-0.012, 0.0009) == "[-1.20, 0.09]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00012, "0.000120"),
        (3.14159, "3.14"),
        (999.4, "999"),
        (999.6, "1000"),
        (-45678.9, "-45679"),
    ],
)
def test_regression_has_three_significant_digits_and_no_exponent(value, text):
    assert UNIT.error(value) == significant(value) == text


def test_only_the_leading_minus_of_a_number_is_typeset():
    page = Numbers(per_cent=False, minus=MINUS)
    assert page.difference(-1.5e-7) == f"{MINUS}1.50e-07"
    assert page.interval(-2.0, -1.0) == f"[{MINUS}2.00, {MINUS}1.00]"


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (1.0, "1.000")]
)
def test_small_p_values_are_bounds(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (86400.0, "24 h 0 min"),
    ],
)
def test_times_never_round_up_to_a_whole_larger_unit(value, text):
    assert seconds(value) == text


def test_unknown_settings_keep_their_names():
    assert settings({"input_rate": 0.2, "new_strength": 0.12345}) == [
        "drop rate of inputs 0.2",
        "new strength 0.123",
    ]
