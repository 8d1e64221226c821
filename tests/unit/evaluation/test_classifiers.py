import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nextembed.evaluation.probes.solvers import fit_linear, knn


def blobs(num, width, classes=4, seed=0, noise=2.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (num,), generator=generator)
    stretch = torch.linspace(0.1, 5, width)  # features of very different scale
    return (centres[labels] + noise * torch.randn(num, width, generator=generator)) * stretch + 3, labels


@pytest.mark.parametrize(("num", "width"), [(300, 12), (40, 90)])  # fewer and more features than images
def test_linear_probe_is_logistic_regression(num, width):
    x, y = blobs(num, width)
    penalties = [0.003, 0.03, 0.3]
    probes = fit_linear(x, y, 4, penalties, max_iterations=400)
    scaled = StandardScaler().fit_transform(x.double().numpy())
    for probe, penalty in zip(probes, penalties, strict=True):
        reference = LogisticRegression(C=1 / (num * penalty), tol=1e-8, max_iter=5000).fit(scaled, y.numpy())
        np.testing.assert_allclose(probe.weight.T.numpy(), reference.coef_, atol=2e-3)
        bias = probe.bias - probe.bias.mean()  # softmax is invariant to a common shift
        np.testing.assert_allclose(bias.numpy(), reference.intercept_ - reference.intercept_.mean(), atol=2e-2)
        assert (probe.predict(x).numpy() == reference.predict(scaled)).mean() > 0.99


def test_few_iterations_predict_the_same():
    x, y = blobs(500, 30)
    new, _ = blobs(500, 30, seed=1)
    short, long = (fit_linear(x, y, 4, [0.01], steps)[0].predict(new) for steps in (40, 400))
    assert (short == long).float().mean() > 0.99


def test_linear_probe_handles_constant_features_and_missing_classes():
    x, y = blobs(60, 5, classes=3)
    x = torch.cat([x, torch.full((60, 1), 7.0)], dim=1)
    probe = fit_linear(x, y, 5, [0.01])[0]  # classes 3 and 4 never occur
    assert probe.weight.isfinite().all() and probe.weight[5].abs().max() < 1e-4
    assert probe.predict(x).max() < 3


def test_knn_is_brute_force():
    bank, labels = blobs(150, 6, noise=1.0)
    queries, _ = blobs(40, 6, seed=1, noise=1.0)
    k, temperature = 7, 0.07
    want = []
    for query in queries.double().numpy():
        cosines = [float(query @ b / np.linalg.norm(query) / np.linalg.norm(b)) for b in bank.double().numpy()]
        votes = np.zeros(4)
        for i in sorted(range(150), key=lambda i: -cosines[i])[:k]:
            votes[labels[i]] += np.exp(cosines[i] / temperature)
        want.append(int(votes.argmax()))
    assert knn(bank, labels, queries, 4, k, temperature).tolist() == want
    assert len(set(want)) > 1


def test_knn_with_a_bank_smaller_than_k():
    bank = torch.eye(3)
    assert knn(bank, torch.tensor([2, 0, 1]), bank * 5, 3, k=20).tolist() == [2, 0, 1]
