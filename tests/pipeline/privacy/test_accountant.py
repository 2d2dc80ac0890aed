import builtins
import itertools

import pytest

from pipeline.errors import ConfigError
from pipeline.privacy.accountant import AGREEMENT, account, library
from pipeline.privacy.gaussian import mu_of

MECHANISMS = [
    {"radius": radius, "step": step, "noise": noise, "steps": steps, "rho": rho}
    for radius, step, noise, steps, rho in itertools.product(
        (0.1, 1.0), (0.01, 0.1), (0.05, 1.0), (1, 30, 1000), (1.0, 1 - 1e-9, 0.9)
    )
]


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_library_and_formula_agree_on_a_grid(delta: float) -> None:
    looked = 0
    for given in MECHANISMS:
        mu = mu_of(**given)
        if mu < 100:
            found = account(mu, delta)
            assert found.epsilon == pytest.approx(found.formula, rel=AGREEMENT, abs=AGREEMENT)
            looked += 1
    assert looked > 50


def test_the_figure_names_its_library() -> None:
    found = account(1.0, 1e-5)
    assert found.made_by.startswith("dp-accounting ")
    assert 4 < found.epsilon < 5


def test_a_missing_library_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "dp_accounting":
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="dp-accounting is not installed") as caught:
        library()
    assert "i2i-unlearn[certify]" in caught.value.cure
