import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.evaluation.paired import MAX_PSNR, METRICS, score


def batch(size=16, channels=1, num=5):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(num, channels, size, size, generator=generator)
    region = torch.rand(num, 1, size, size, generator=generator) > 0.6
    region[:, :, 0, 0] = True
    answer = (truth + 0.2 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    return answer, truth, region


@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_those_of_the_definition_in_regions_of_any_shape(channels):
    answer, truth, region = batch(channels=channels)
    found = score(answer, truth, region)
    assert set(found) == set(METRICS)
    for place in range(len(truth)):
        inside = (answer[place] - truth[place])[region[place].expand_as(truth[place])].numpy()
        error = float(np.square(inside).mean())
        assert found["error_region"][place] == pytest.approx(error, rel=1e-4)
        assert found["psnr_region"][place] == pytest.approx(-10 * np.log10(error), rel=1e-4)
        whole = float((answer[place] - truth[place]).square().mean())
        assert found["error_image"][place] == pytest.approx(whole, rel=1e-4)
        assert found["psnr_image"][place] == pytest.approx(-10 * np.log10(whole), rel=1e-4)
        assert -1 <= found["ssim_region"][place] <= 1


def test_a_region_of_the_whole_image_gives_the_images_scores():
    answer, truth, region = batch()
    found = score(answer, truth, torch.ones_like(region))
    for name in ("error", "psnr", "ssim"):
        assert found[f"{name}_region"] == pytest.approx(found[f"{name}_image"], rel=1e-4)


def test_known_pixels_do_not_count_in_the_region():
    """Metrics over the whole image, with the truth pasted in around the answer, understate what changed where it was hidden."""
    answer, truth, region = batch()
    pasted, spoilt = torch.where(region, answer, truth), torch.where(region, answer, 1 - truth)
    scores = [score(images, truth, region) for images in (answer, pasted, spoilt)]
    for name in ("error_region", "psnr_region"):
        assert (scores[0][name] == scores[1][name]).all() and (scores[1][name] == scores[2][name]).all()
    assert (scores[1]["error_image"] < scores[1]["error_region"]).all()
    assert (scores[1]["psnr_image"] > scores[1]["psnr_region"]).all()


def test_an_exact_answer_has_finite_scores():
    _, truth, region = batch()
    found = score(truth, truth, region)
    assert (found["error_region"] == 0).all()
    assert (found["psnr_region"] == MAX_PSNR).all() and (found["psnr_image"] == MAX_PSNR).all()
    assert found["ssim_region"] == pytest.approx(1)


def test_scores_of_an_image_do_not_depend_on_its_batch():
    answer, truth, region = batch()
    alone, together = score(answer[2:3], truth[2:3], region[2:3]), score(answer, truth, region)
    for name in METRICS:
        assert alone[name][0] == pytest.approx(together[name][2], rel=1e-4)


@pytest.mark.parametrize("size", [2, 4, 5, 6])
def test_small_images_shrink_the_window(size):
    answer, truth, region = batch(size=size)
    assert np.isfinite(score(answer, truth, region)["ssim_region"]).all()


def test_one_pixel_is_refused():
    with pytest.raises(ConfigError, match="1 pixel"):
        score(*batch(size=1))
