import pytest

from pipeline.report.numbers import between, count, decimals, duration, ratio, share, size


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (count(1234567), "1,234,567"),
        (decimals(-0.5, 2), "−0.50"),
        (between({"low": 0.1, "high": 0.25}, 2), "0.10 – 0.25"),
        (between({"low": None}), ""),
        (share(0.1134), "11 %"),
        (share(0.045), "4.5 %"),
        (ratio(1.0123), "1.012×"),
        (duration(12.34), "12.3 s"),
        (duration(119.7), "2 min 0 s"),
        (duration(7384), "2 h 3 min"),
        (size(100), "100 bytes"),
        (size(5 * 1024**2), "5.0 MiB"),
    ],
)
def test_numbers_as_text(text, wanted):
    assert text == wanted


@pytest.mark.parametrize("form", [count, decimals, ratio, share, duration, size])
def test_none_is_not_computed(form):
    assert form(None) == "not computed"
