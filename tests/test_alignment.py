"""The motion between two sets of points, against motions that are known."""

import pytest
import torch
from torch import Tensor

from model.recipes.alignment import fit, fit_robust, move, move_camera, scale_of


def turn(degrees: float, axis: int) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    a, b = (axis + 1) % 3, (axis + 2) % 3
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[a, a], rotation[b, b], rotation[a, b], rotation[b, a] = angle.cos(), angle.cos(), -angle.sin(), angle.sin()
    return rotation


def similarity(scale: float = 1.0) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * turn(25, 0) @ turn(-40, 1)
    matrix[:3, 3] = torch.tensor([0.3, -2.0, 1.5])
    return matrix


def cloud(count: int = 200, seed: int = 0) -> Tensor:
    """Points before a camera, as a window has them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 5])


def flat(points: Tensor) -> Tensor:
    return points * torch.tensor([1.0, 1.0, 0.0], dtype=points.dtype)


@pytest.mark.parametrize("shape", [lambda x: x, flat, lambda x: x * torch.tensor([1, 1e-3, 1e-6]).double()])
@pytest.mark.parametrize("degrees", [0.0, 5.0, 90.0, 179.0, 180.0])
def test_a_rigid_motion_is_recovered_exactly_also_in_a_plane(shape, degrees):
    """A plane is where a fit without the determinant test may return a mirror image."""
    generator = torch.Generator().manual_seed(3)
    for axis in range(3):
        source = shape(torch.randn(20, 3, generator=generator, dtype=torch.float64))
        rotation = turn(degrees, axis) @ turn(33, (axis + 1) % 3)
        translation = torch.randn(3, generator=generator, dtype=torch.float64)
        weights = torch.rand(20, generator=generator, dtype=torch.float64)
        found = fit(source, source @ rotation.T + translation, weights, scale=False)
        torch.testing.assert_close(found[:3, :3], rotation, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[:3, 3], translation, atol=1e-8, rtol=0)
        assert found[3].tolist() == [0, 0, 0, 1]


def test_a_mirror_image_is_answered_by_a_rotation():
    source = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fit(source, source * torch.tensor([1, 1, -1]).double(), torch.ones(30), scale=False)
    assert torch.linalg.det(found[:3, :3]).item() == pytest.approx(1)


def test_points_of_weight_zero_do_not_count():
    source = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = source @ turn(20, 0).T
    target[:5] += 100
    weights = torch.ones(20)
    weights[:5] = 0
    torch.testing.assert_close(fit(source, target, weights, scale=False)[:3, :3], turn(20, 0))


def test_a_fit_needs_sixteen_finite_points():
    source = torch.randn(1, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = source + 1
    target[0, :4] = torch.nan
    found, residual, inliers = fit_robust(source, target, torch.ones(1, 20), scale=False)
    torch.testing.assert_close(found[0, :3, 3], torch.ones(3, dtype=torch.float64))
    assert residual < 1e-6 and inliers.item() == pytest.approx(0.8)
    target[0, 4] = torch.inf
    found, _, inliers = fit_robust(source, target, torch.ones(1, 20), scale=False)
    assert found.isnan().all() and inliers == 0


@pytest.mark.parametrize("scale", [0.01, 1.0, 37.0])
def test_a_similarity_is_recovered_exactly(scale):
    source = cloud()
    expected = similarity(scale)
    found = fit(source, move(expected, source), torch.rand(200), scale=True)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert scale_of(found).item() == pytest.approx(scale)


def test_the_scale_is_right_on_average_where_both_sets_are_off_alike():
    """That of least squares would be 4 % too small each time; over 50 windows, a seventh is left."""
    generator, truth = torch.Generator().manual_seed(5), cloud(count=300)
    source, target = (truth + 0.2 * torch.randn(100, *truth.shape, generator=generator).double() for _ in range(2))
    weights = torch.ones(source.shape[:-1])
    found = fit_robust(source, 1.7 * target, weights, scale=True).target_from_source
    logarithms = (scale_of(found) / 1.7).log()
    assert logarithms.mean().abs() < 4 * logarithms.std() / 10 < 0.01
    back = fit_robust(1.7 * target, source, weights, scale=True).target_from_source
    assert (scale_of(found) * scale_of(back)).log().mean().abs() < 0.002


def test_where_the_scale_is_known_none_is_fitted():
    source = cloud()
    found = fit(source, move(similarity(1.1), source), torch.ones(200), scale=False)
    assert scale_of(found).item() == pytest.approx(1)
    torch.testing.assert_close(found[:3, :3], similarity()[:3, :3], atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_nearly_half_of_the_points_may_be_anywhere(scale, seed):
    source, expected = cloud(seed=seed), similarity(1.3 if scale else 1.0)
    target = move(expected, source)
    target[:90] = cloud(90, seed + 100) * 2
    found, residual, inliers = fit_robust(source[None], target[None], torch.ones(1, 200), scale=scale)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)
    assert 0.55 <= inliers.item() < 0.6 and residual.item() < 1e-4


def test_a_fifth_that_moved_together_and_surely_is_left_behind():
    """As a thing is of which both windows are wrong."""
    source, expected = cloud(), similarity(1.3)
    target = move(expected, source)
    target[:40] += torch.tensor([0.5, 0, 0.3], dtype=torch.float64)
    weights = torch.ones(1, 200)
    weights[0, 40:] = 0.5
    found = fit_robust(source[None], target[None], weights, scale=True).target_from_source[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [False, True])
def test_no_motion_is_given_of_points_on_a_line_or_in_one_place(scale):
    along = torch.linspace(1, 2, 30)[:, None] * torch.tensor([0.5, -1.0, 3.0])
    for source in (along, along[:1].expand(30, 3), torch.full((30, 3), torch.nan)):
        found, residual, inliers = fit_robust(source[None], 2 * source[None] + 1, torch.ones(1, 30), scale=scale)
        assert found.isnan().all() and residual.isnan() and inliers == 0


def test_a_camera_that_is_moved_stays_rigid_and_sees_the_points_that_moved_with_it():
    pose, points, moved_by = similarity(), cloud(), similarity(2.5)
    seen = move(torch.linalg.inv(pose), points)
    moved = move_camera(moved_by, pose)
    assert torch.linalg.det(moved[:3, :3]).item() == pytest.approx(1)
    torch.testing.assert_close(move(torch.linalg.inv(moved), move(moved_by, points)), 2.5 * seen)
