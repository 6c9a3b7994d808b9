"""entropy.py against closed forms, scipy's matrix logarithm and exact enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag, logm
from scipy.stats import multinomial, ortho_group

from entropy import gram, von_neumann

MEANINGS = np.array([0.5, 0.25, 0.15, 0.1])


def shannon(p):
    return -sum(q * math.log(q) for q in p if q > 0)


def random_embeddings(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
@pytest.mark.parametrize("n", [1, 2, 10])
def test_identical_answers_have_entropy_zero(kernel, n):
    e = np.tile(random_embeddings(0, 1, 7), (n, 1))
    assert 0 <= von_neumann(gram(e, kernel)) < 1e-11


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_orthogonal_answers(n):
    e = np.eye(n, 12)
    assert von_neumann(gram(e, "cosine")) == pytest.approx(math.log(n), abs=1e-12)
    # rbf: K = (1 - k) I + k 11', k = exp(-2): eigenvalues 1 + (n - 1) k once, 1 - k the other n - 1 times
    k = math.exp(-2)
    expected = shannon([(1 + (n - 1) * k) / n] + [(1 - k) / n] * (n - 1))
    assert von_neumann(gram(e)) == pytest.approx(expected, abs=1e-12)
    assert n < 10 or expected == pytest.approx(2.239, abs=5e-4)  # as the module says


@pytest.mark.parametrize("cos", [-1.0, -0.3, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_two_answers_by_hand(cos, gamma):
    e = np.array([[3.0, 0.0], [0.2 * cos, 0.2 * math.sqrt(1 - cos**2)]])  # not of unit length
    for kernel, k in (("cosine", cos), ("rbf", math.exp(-gamma * (2 - 2 * cos)))):
        np.testing.assert_allclose(gram(e, kernel, gamma), [[1, k], [k, 1]], atol=1e-12)
        expected = shannon([(1 + k) / 2, (1 - k) / 2])
        assert von_neumann(gram(e, kernel, gamma)) == pytest.approx(expected, abs=1e-12)


def test_rbf_is_the_formula_with_explicit_differences():
    e = random_embeddings(1, 6, 4)
    unit = [v / math.sqrt(sum(x * x for x in v)) for v in e]
    expected = [[math.exp(-0.7 * math.dist(u, v) ** 2) for v in unit] for u in unit]
    np.testing.assert_allclose(gram(e, "rbf", 0.7), expected, atol=1e-13)


def test_length_of_an_embedding_does_not_matter_at_any_scale():
    e = random_embeddings(2, 4, 5)
    scale = np.array([[1e-200], [1.0], [1e200], [7.0]])
    np.testing.assert_allclose(gram(e * scale), gram(e), atol=1e-13)


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_matrix_logarithm(kernel):
    rho = gram(random_embeddings(3, 8, 20), kernel) / 8  # n < d: full rank
    assert von_neumann(rho * 8) == pytest.approx(-np.trace(rho @ logm(rho)).real, abs=1e-10)


def test_blocks_add_by_the_chain_rule():
    k = block_diag(np.ones((5, 5)), np.ones((3, 3)), np.ones((2, 2)))  # of equal meanings: the entropy of their shares
    assert von_neumann(k) == pytest.approx(shannon([0.5, 0.3, 0.2]), abs=1e-12)
    a, b = gram(random_embeddings(4, 3, 5)), gram(random_embeddings(5, 7, 5))
    chain = shannon([0.3, 0.7]) + 0.3 * von_neumann(a) + 0.7 * von_neumann(b)
    assert von_neumann(block_diag(a, b)) == pytest.approx(chain, abs=1e-12)


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_stacked_is_a_loop(kernel):
    e = random_embeddings(6, 2, 3, 5, 4)
    k, before = gram(e, kernel), e.copy()
    von_neumann(k)
    assert (e == before).all()  # inputs are not changed
    for i, j in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(k[i, j], gram(e[i, j], kernel), atol=1e-13)
        assert von_neumann(k)[i, j] == pytest.approx(von_neumann(k[i, j]), abs=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 6), st.sampled_from(["rbf", "cosine"]))
def test_invariants(seed, n, d, kernel):
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(n, d))
    e[rng.random(n) < 0.4] = e[0]  # repeated answers make the matrix singular
    k = gram(e, kernel)
    assert (np.diagonal(k) == 1).all()
    assert np.linalg.eigvalsh(k).min() > -1e-12
    h = von_neumann(k)
    assert 0 <= h <= math.log(n) + 1e-12
    assert von_neumann(gram(rng.permutation(e), kernel)) == pytest.approx(h, abs=1e-11)
    assert von_neumann(gram(e @ ortho_group.rvs(d, random_state=rng), kernel)) == pytest.approx(h, abs=1e-11)


def test_rounded_input():
    asymmetric, above_one = np.array([[1, 0.4], [0.6, 1]]), np.array([[1.0005]])
    assert von_neumann(asymmetric) == pytest.approx(shannon([0.75, 0.25]), abs=1e-12)
    assert von_neumann(above_one) == 0  # not negative
    e = random_embeddings(7, 10, 384).astype(np.float32)
    assert gram(e).dtype == np.float64  # in which all is computed
    np.testing.assert_allclose(gram(e), gram(e.astype(np.float64)), atol=1e-14)
    assert von_neumann(gram(e).astype(np.float16)) == pytest.approx(von_neumann(gram(e)), abs=1e-3)


def mean_entropies(n):
    """Exact means over n samples, by how often each of the four meanings is drawn. -> shares, cosine, rbf"""
    counts = np.array([c for c in itertools.product(range(n + 1), repeat=4) if sum(c) == n])
    chance, answers = multinomial.pmf(counts, n, MEANINGS), np.array([np.repeat(np.eye(4), c, axis=0) for c in counts])
    found = [[shannon(c / n) for c in counts], *(von_neumann(gram(answers, kernel)) for kernel in ("cosine", "rbf"))]
    return [chance @ h for h in found]


def test_plug_in_estimate_is_biased_low_and_grows_with_n():
    for n, of_shares, of_rbf in ((3, 0.66, 0.65), (10, 1.03, 1.02)):
        exact, cosine, rbf = mean_entropies(n)
        assert (exact, rbf) == pytest.approx((of_shares, of_rbf), abs=0.005)
        assert cosine == pytest.approx(exact, abs=1e-12)
    draws = np.random.default_rng(0).choice(4, size=(30, 200), p=MEANINGS)
    at_200 = von_neumann(gram(np.eye(4)[draws], "cosine")).mean()
    assert at_200 == pytest.approx(shannon(MEANINGS) - 3 / (2 * 200), abs=0.02)  # Miller-Madow: (m - 1) / 2n


@pytest.mark.parametrize("bad", [np.zeros(3), [1, np.nan, 0], [np.inf, 0, 0]])
def test_a_vector_without_direction_is_refused(bad):
    e = random_embeddings(9, 2, 4, 3)
    e[1, 2] = bad
    with pytest.raises(ValueError, match="zero or non-finite"):
        gram(e)


@pytest.mark.parametrize("function, arguments, message", [
    (gram, (np.eye(3), "linear"), "rbf, cosine"),
    *((gram, (np.eye(3), "rbf", gamma), "gamma must be positive") for gamma in (0, -1, np.nan, np.inf)),
    *((gram, (np.ones(shape),), "shape") for shape in (3, (0, 3), (3, 0))),
    *((von_neumann, (np.ones(shape),), "shape") for shape in (3, (2, 3), (0, 0))),
    (von_neumann, (np.eye(4) / 4,), "unit diagonal"), (von_neumann, ([[1, np.nan], [np.nan, 1]],), "NaN"),
])  # fmt: skip
def test_bad_arguments_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
