"""A regression from running sums equals the ridge regression of all samples at once."""

import torch

from nextembed.nn.running_regression import RunningRegression


def samples(number: int = 300, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(number, width) @ torch.diag(torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0])) + 4
    inputs[:, 3] = inputs[:, 0] + 0.01 * torch.randn(number)  # a direction in which they hardly vary
    return inputs, inputs @ torch.randn(width, 2) + torch.tensor([7.0, -3.0])


def solved(inputs: torch.Tensor, targets: torch.Tensor, prior: float, batch: int = 16):
    regression = RunningRegression(inputs.shape[1], targets.shape[1], prior)
    for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
        regression.add(x, y)
    return regression, regression.solve()


def test_it_finds_an_exact_map() -> None:
    inputs, targets = samples()
    _, (weight, bias) = solved(inputs, targets, prior=0.0)
    torch.testing.assert_close(inputs @ weight.T + bias, targets, atol=0.05, rtol=1e-3)


def test_it_is_the_ridge_regression_of_standardised_inputs() -> None:
    inputs, targets = samples()
    _, (weight, bias) = solved(inputs, targets, prior=2.0)
    x, y = inputs.double(), targets.double()
    z = (x - x.mean(0)) / x.std(0, correction=0)
    ridge = z.T @ z + 2.0 * 5 * torch.eye(5, dtype=torch.float64)
    expected = z @ torch.linalg.solve(ridge, z.T @ (y - y.mean(0))) + y.mean(0)
    torch.testing.assert_close((inputs @ weight.T + bias).double(), expected, atol=2e-3, rtol=2e-3)


def test_nothing_constant_and_too_few_samples() -> None:
    assert RunningRegression(3, 2).solve() is None
    inputs, targets = samples(3)
    inputs[:, 1] = 2.0
    _, (weight, bias) = solved(inputs, targets, prior=0.05)
    assert weight.isfinite().all() and bias.isfinite().all() and weight[:, 1].abs().max() < 1e-3
    alone = torch.full((4, 3), 1.5)
    _, (weight, bias) = solved(alone, torch.ones(4, 2), prior=0.05)
    torch.testing.assert_close(alone @ weight.T + bias, torch.ones(4, 2))


def test_its_state_resumes() -> None:
    inputs, targets = samples()
    _, (weight, bias) = solved(inputs, targets, prior=0.05)
    half, _ = solved(inputs[:160], targets[:160], prior=0.05)
    again = RunningRegression(5, 2, 0.05)
    again.load_state_dict(half.state_dict())
    again.add(inputs[160:], targets[160:])
    resumed = again.solve()
    torch.testing.assert_close(inputs @ resumed[0].T + resumed[1], inputs @ weight.T + bias, atol=1e-2, rtol=1e-3)


def test_rounding_of_the_sums_does_not_stop_it() -> None:
    """Inputs of rank 4, whose other variances are rounding alone: large means, many samples, no prior."""
    torch.manual_seed(1)
    factors = torch.randn(4, 64)
    regression = RunningRegression(64, 1, prior=0.0).float()  # as on a device without float64
    for _ in range(200):
        x = torch.randn(32, 4)
        regression.add(x @ factors + 300, x[:, :1])
    weight, bias = regression.solve()
    x = torch.randn(500, 4)
    error = (x @ factors + 300) @ weight.T + bias - x[:, :1]
    assert weight.isfinite().all() and error.square().mean() < 0.2


def test_what_is_not_finite_has_no_solution() -> None:
    regression = RunningRegression(3, 2)
    regression.add(torch.randn(8, 3), torch.randn(8, 2))
    regression.add(torch.full((1, 3), torch.nan), torch.zeros(1, 2))
    assert regression.solve() is None
