import xml.etree.ElementTree as ElementTree

from pipeline.report.tradeoff import Point, tradeoff


def point(label, x, y, kind="within"):
    return Point(label=label, name=f"method {label} <b>", kind=kind, x=(x, x * 0.9, x * 1.1), y=(y, y, y))


def test_points_are_numbered_and_told_in_words_and_always_the_same():
    points = [
        *(point(str(n), n / 50, n / 20) for n in range(12)),
        point("", 0.0, 1.0, "original"),
        point("13", 9.0, 0.1, "beyond"),
    ]
    made = [tradeoff(points, limit=0.2, axis="cost", percent=True, subject="Cost") for _ in range(2)]
    assert made[0] == made[1] and made[0].light != made[0].dark
    assert ElementTree.fromstring(made[0].light).tag.endswith("svg")
    assert "11 method 11 <b>: 0.220, 0.550" in made[0].alt and b"<b>" not in made[0].light
    assert b">13<" in made[0].light and b"not in budget" in made[0].light


def test_no_point_is_no_plot_and_one_is_enough():
    assert tradeoff([], limit=0.2, axis="cost", percent=True, subject="Cost") is None
    assert tradeoff([point("1", 1.0, 0.0)], limit=1.0, axis="loss", percent=False, subject="Loss") is not None
