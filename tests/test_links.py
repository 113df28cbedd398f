"""Links: exact to a few ulps of each entry, and what they do at the edges."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import adversaries
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import ways
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import assert_ulps, ulp_error

import jaxsoftmax as js
from jaxsoftmax import exponential

pytestmark = pytest.mark.usefixtures("strict")

ROW_LINKS = {"softmax": js.softmax, "log_softmax": js.log_softmax, "logsumexp": js.logsumexp}
SCALAR_LINKS = {"sigmoid": js.sigmoid, "log_sigmoid": js.log_sigmoid, "softplus": js.softplus}


@cache
def truth(classes: int, dtype: type, masked: bool) -> dict[str, np.ndarray]:
    logits = adversaries.logits(classes, dtype)
    where = adversaries.where(classes, logits.shape) if masked else None
    total, largest = oracles.logsumexp(logits, where)
    return {
        "softmax": oracles.softmax(logits, where),
        "log_softmax": oracles.log_softmax(logits, where),
        "logsumexp": total,
        "logsumexp_scale": largest,
    }


def all_row_links(logits: jax.Array, _: jax.Array, where: jax.Array | None, *, axis: int) -> dict:
    return {name: link(logits, axis=axis, where=where) for name, link in ROW_LINKS.items()}


def assert_row_links(found: dict, classes: int, dtype: type, masked: bool = False) -> None:
    true = truth(classes, dtype, masked)
    for name, got in found.items():
        assert got.dtype == dtype
        assert_ulps(got, true[name], scale=true.get(f"{name}_scale"))


# -- The oracles themselves --


@pytest.mark.parametrize(
    ("logits", "label"),
    [([20.0, 0.0], 0), ([1e4, 0.0, 9990.0], 2), ([0.1, 0.2, 0.3], 1), ([300.0, 212.5, 299.0], 0)],
)
def test_oracle_agrees_with_mpmath(logits: list[float], label: int) -> None:
    value, gradient = oracles.mp_cross_entropy(logits, label)
    batch, labels = np.array([logits]), np.array([label])
    relative = 2.0 ** (4 - np.finfo(oracles.extended).nmant)
    true = [oracles.from_mp(x) for x in (value, *gradient)]
    got = [oracles.cross_entropy(batch, labels)[0]]
    got += list(oracles.cross_entropy_gradient(batch, labels)[0])
    for mine, mp in zip(got, true, strict=True):
        assert abs(mine - mp) <= relative * abs(mp)


def test_ulp_error_counts_and_refuses() -> None:
    tiny = np.finfo(np.float32).tiny
    got = np.array([1, np.nextafter(1, 2), np.nextafter(1, 0), 0, -tiny, np.nan, np.inf, 2 * tiny])
    true = np.array([1, 1, 1, tiny / 4, tiny / 4, 1, 1, tiny / 4], oracles.extended)
    got = got.astype(np.float32)
    got[1:3] = np.nextafter(np.float32(1), np.float32([2, 0]))
    error = ulp_error(got, true)
    np.testing.assert_array_equal(error, [0, 1, 0.5, 0, np.inf, np.inf, np.inf, np.inf])


# -- Exactness --


@pytest.mark.parametrize(("classes", "way"), ways.COMMON_CASES, ids=ways.name_of)
def test_row_links_are_exact(classes: int, way: Callable, dtype: type) -> None:
    if dtype is np.float64 and classes in (3, 127, 128, 129, 100_000):
        pytest.skip("float32 covers this number of classes")
    logits = jnp.asarray(adversaries.logits(classes, dtype))
    found = way(all_row_links, logits, jnp.zeros(len(logits), jnp.int32), None)
    assert_row_links(found, classes, dtype)


@pytest.mark.parametrize("way", [*ways.COMMON, ways.alone, *ways.AXES], ids=lambda w: w.__name__)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "where"])
def test_row_links_are_exact_in_every_way(masked: bool, way: Callable, dtype: type) -> None:
    if dtype is np.float64 and (not masked or way not in (ways.jit, ways.first_axis)):
        pytest.skip("how axes are moved does not depend on the dtype")
    classes = 500
    logits = jnp.asarray(adversaries.logits(classes, dtype))
    where = jnp.asarray(adversaries.where(classes, logits.shape)) if masked else None
    found = way(all_row_links, logits, jnp.zeros(len(logits), jnp.int32), where)
    assert_row_links(found, classes, dtype, masked)


@pytest.mark.parametrize("way", ways.AXES, ids=lambda way: way.__name__)
def test_row_links_are_exact_along_a_long_axis(way: Callable) -> None:
    # Along an axis that is not the last a sum runs through memory in another order.
    logits = jnp.asarray(adversaries.logits(5000, np.float32))
    found = way(all_row_links, logits, jnp.zeros(len(logits), jnp.int32), None)
    assert_row_links(found, 5000, np.float32)


@pytest.mark.parametrize("name", ROW_LINKS)
@pytest.mark.parametrize("classes", [10, 1000])
def test_row_link_compiled_alone_is_exact(name: str, classes: int) -> None:
    logits = jnp.asarray(adversaries.logits(classes, np.float32))
    assert_row_links({name: jax.jit(ROW_LINKS[name])(logits)}, classes, np.float32)


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"]
)
@pytest.mark.parametrize("name", SCALAR_LINKS)
def test_scalar_links_are_exact(name: str, transform: Callable, dtype: type) -> None:
    z = adversaries.scalars(dtype)
    true = {
        "sigmoid": oracles.sigmoid,
        "softplus": oracles.softplus,
        "log_sigmoid": lambda z: -oracles.softplus(-z),
    }[name](z)
    assert_ulps(transform(SCALAR_LINKS[name])(jnp.asarray(z)), true)


@pytest.mark.parametrize("name", SCALAR_LINKS)
def test_scalar_links_have_exact_derivatives(name: str, dtype: type) -> None:
    z = adversaries.scalars(dtype)
    sigmoid, other = oracles.sigmoid(z), oracles.sigmoid(-z)
    first = {"sigmoid": sigmoid * other, "softplus": sigmoid, "log_sigmoid": other}[name]
    got = jax.jit(jax.vmap(jax.grad(SCALAR_LINKS[name])))(jnp.asarray(z))
    assert_ulps(got, first)


# -- The edges --


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_infinite_and_missing_logits(transform: Callable) -> None:
    inf, nan = np.inf, np.nan
    logits = jnp.asarray(
        [
            [-inf, -inf, -inf],
            [inf, 0, inf],
            [inf, -inf, 3],
            [nan, 0, 1],
            [inf, nan, 0],
            [0, 0, -inf],
        ]
    )
    p = np.asarray(transform(js.softmax)(logits))
    np.testing.assert_array_equal(
        p, [[0, 0, 0], [0.5, 0, 0.5], [1, 0, 0], [nan] * 3, [nan] * 3, [0.5, 0.5, 0]]
    )
    log_p = np.asarray(transform(js.log_softmax)(logits))
    half = -np.log(np.float32(2))
    np.testing.assert_array_equal(
        log_p,
        [[-inf] * 3, [half, -inf, half], [0, -inf, -inf], [nan] * 3, [nan] * 3, [half, half, -inf]],
    )
    total = np.asarray(transform(js.logsumexp)(logits))
    np.testing.assert_array_equal(total, [-inf, inf, inf, nan, nan, -half])


def test_derivatives_of_row_links_are_exact(dtype: type) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (200, 10)).astype(dtype)
    tangents = rng.normal(size=logits.shape).astype(dtype)
    p, v = oracles.softmax(logits), tangents.astype(oracles.extended)
    mean, size = (p * v).sum(-1), (p * np.abs(v)).sum(-1)
    product, largest = oracles.softmax_hessian_product(logits, tangents)
    found = {name: jax.jvp(link, (logits,), (tangents,))[1] for name, link in ROW_LINKS.items()}
    assert_ulps(found["softmax"], product, scale=largest, limit=16)  # p and its factor, 8 each
    assert_ulps(found["logsumexp"], mean, scale=size)
    assert_ulps(found["log_softmax"], v - mean[:, None], scale=np.abs(v) + size[:, None])


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 3e38])
def test_where_hides_whatever_is_there(hidden: float) -> None:
    where = jnp.asarray([[True, False, True], [False, False, False]])
    logits = jnp.asarray([[1.0, hidden, 2.0], [hidden, hidden, 0.0]])
    for name, link in ROW_LINKS.items():
        plain = link(jnp.where(where, logits, -jnp.inf))
        np.testing.assert_array_equal(link(logits, where=where), plain, err_msg=name)
        slope = jax.grad(
            lambda z, link=link: jnp.where(where, _finite(link(z, where=where)), 0.0).sum()
        )
        assert np.isfinite(slope(logits)).all(), name
        np.testing.assert_array_equal(np.asarray(slope(logits))[~np.asarray(where)], 0)


def _finite(x: jax.Array) -> jax.Array:
    """Entries that are finite, 0 for the others; rows from [B] to [B, 1]."""
    x = x[:, None] if x.ndim == 1 else x
    return jnp.where(jnp.isfinite(x), x, 0.0)


def test_where_broadcasts_along_rows() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    where = jnp.asarray([[True, False, True]])
    for link in ROW_LINKS.values():
        full = link(logits, where=jnp.broadcast_to(where, logits.shape))
        np.testing.assert_array_equal(link(logits, where=where), full)


@jax.jit
def values_and_cotangents(z: jax.Array, cotangent: jax.Array) -> dict[str, tuple]:
    """Each link with as many results as logits, and its product with a cotangent."""
    links = {name: f for name, f in (ROW_LINKS | SCALAR_LINKS).items() if name != "logsumexp"}
    pulled = {name: jax.vjp(link, z) for name, link in links.items()}
    return {name: (value, *pull(cotangent)) for name, (value, pull) in pulled.items()}


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
def test_half_precision_rounds_once(half: jnp.dtype) -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(8 * rng.standard_normal((20, 33)), half)
    wide = logits.astype(jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal(logits.shape), half)
    found = values_and_cotangents(logits, cotangent)
    true = values_and_cotangents(wide, cotangent.astype(jnp.float32))
    for name in found:
        for got, exact in zip(found[name], true[name], strict=True):
            assert got.dtype == half
            np.testing.assert_array_equal(got, np.asarray(exact).astype(half), name)
    total = js.logsumexp(logits)
    assert total.dtype == jnp.float32
    np.testing.assert_array_equal(total, js.logsumexp(wide))


@pytest.mark.parametrize("link", [*ROW_LINKS.values(), *SCALAR_LINKS.values()])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_logits_must_be_floats(link: Callable, dtype: jnp.dtype) -> None:
    with pytest.raises(TypeError, match="logits"):
        link(jnp.ones((2, 3), dtype))


@pytest.mark.parametrize("link", ROW_LINKS.values(), ids=ROW_LINKS.keys())
def test_bad_arguments_are_named(link: Callable) -> None:
    logits = jnp.zeros((2, 3))
    with pytest.raises((TypeError, ValueError), match="where"):
        link(logits, where=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="where"):
        link(logits, where=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="where"):
        link(logits, where=jnp.ones((2, 4), bool))
    with pytest.raises(ValueError, match="axis"):
        link(logits, axis=2)


def test_one_class() -> None:
    logits = jnp.asarray([[3.0], [-1e30], [-jnp.inf]])
    np.testing.assert_array_equal(js.softmax(logits), [[1], [1], [0]])
    np.testing.assert_array_equal(js.log_softmax(logits), [[0], [0], [-np.inf]])
    np.testing.assert_array_equal(js.logsumexp(logits), [3, np.float32(-1e30), -np.inf])


def test_empty_batch() -> None:
    logits = jnp.zeros((0, 3))
    assert js.softmax(logits).shape == js.log_softmax(logits).shape == (0, 3)
    assert js.logsumexp(logits).shape == (0,)


# -- jax issue 37234: under jit a constant scale is contracted into z - max z --


def log_softmax_interval(scores: np.ndarray, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and most each log-probability can be when each score is known within its slack."""
    below, above = np.empty((2, len(scores)), oracles.extended)
    for k in range(len(scores)):
        sign = np.where(np.arange(len(scores)) == k, -1, 1)
        below[k] = oracles.log_softmax(scores + sign * slack)[k]
        above[k] = oracles.log_softmax(scores - sign * slack)[k]
    return below, above


@cache
def of_scaled(scale: float) -> dict[str, Callable]:
    """Programs of one function each, in which the scale is a constant."""

    def loss(x: jax.Array, label: jax.Array) -> jax.Array:
        return js.cross_entropy(scale * x, label)

    links = {name: lambda x, f=link: f(scale * x) for name, link in ROW_LINKS.items()}
    functions = links | {"loss": loss, "slope": jax.grad(loss)}
    return {name: jax.jit(function) for name, function in functions.items()}


@pytest.mark.parametrize("size", [1e3, 1e5, 1e8, 1e11])
@pytest.mark.parametrize("scale", [0.3, 1.1, 3.7])
def test_scaled_logits_under_jit(size: float, scale: float) -> None:
    # Whether scale * x is rounded before it is used is the compiler's choice; but the answer has
    # to be the softmax of numbers within half an ulp of scale * x, and so never NaN.
    # jax.nn.softmax gives NaN at 1e11, where half an ulp is 4,000.
    x = (size * (1 + 0.3 * np.random.default_rng(5).random(64))).astype(np.float32)
    x[::9] = x.max()
    scores = np.asarray(np.float32(scale), oracles.extended) * x
    slack = np.spacing(np.abs(scores).astype(np.float32)).astype(oracles.extended) / 2
    below, above = log_softmax_interval(scores, slack)
    room = 8 * np.finfo(np.float32).eps

    programs = of_scaled(scale)
    p = np.asarray(programs["softmax"](x))
    assert (p >= np.exp(below) * (1 - room) - 1e-37).all()
    assert (p <= np.exp(above) * (1 + room) + 1e-37).all()
    log_p = np.asarray(programs["log_softmax"](x))
    assert (log_p >= below * (1 + room)).all()
    assert (log_p <= above * (1 - room)).all()

    for label in (int(x.argmax()), int(x.argmin())):
        value = np.asarray(programs["loss"](x, np.int32(label)))
        assert -above[label] * (1 - room) <= value <= -below[label] * (1 + room)
        assert np.isfinite(programs["slope"](x, np.int32(label))).all()
    assert np.isfinite(programs["logsumexp"](x))


# -- Properties --

SHAPE = (3, 5)
moderate = arrays(np.float32, SHAPE, elements=st.floats(-80, 80, width=32))
any_logits = arrays(
    np.float32, SHAPE, elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.just(-np.inf)
)
sixteenths = arrays(np.int32, SHAPE, elements=st.integers(-1000, 1000))

softmax, log_softmax, logsumexp = map(jax.jit, ROW_LINKS.values())


@given(any_logits)
def test_softmax_sums_to_one(logits: np.ndarray) -> None:
    total = np.asarray(softmax(logits)).sum(-1, dtype=np.float64)
    empty = np.isneginf(logits).all(-1)
    np.testing.assert_allclose(total, np.where(empty, 0, 1), rtol=0, atol=2e-6)


@given(any_logits)
def test_exact_where_hypothesis_looks(logits: np.ndarray) -> None:
    assert_ulps(softmax(logits), oracles.softmax(logits))
    assert_ulps(log_softmax(logits), oracles.log_softmax(logits))


@given(sixteenths, st.integers(-4096, 4096))
def test_shifts_that_are_exact_change_nothing(steps: np.ndarray, shift: int) -> None:
    logits = (steps / 16).astype(np.float32)
    moved = logits + np.float32(shift)
    np.testing.assert_array_equal(moved.astype(np.float64) - shift, logits)
    true = oracles.softmax(logits)
    assert_ulps(softmax(logits), true)
    assert_ulps(softmax(moved), true)


@given(any_logits, st.permutations(range(SHAPE[-1])))
def test_permutation_equivariance(logits: np.ndarray, order: list[int]) -> None:
    # Another order of summation may round the total differently, by no more than a few ulps.
    permuted, plain = np.asarray(softmax(logits[:, order])), np.asarray(softmax(logits))[:, order]
    assert_ulps(permuted, plain.astype(oracles.extended), limit=4)


@given(arrays(np.float32, 200, elements=st.floats(-1e4, 1e4, width=32)))
def test_two_class_softmax_is_sigmoid(z: np.ndarray) -> None:
    pairs = jnp.stack([jnp.zeros(200), jnp.asarray(z)], -1)
    true = oracles.sigmoid(z)
    assert_ulps(softmax(pairs)[:, 1], true)
    assert_ulps(js.sigmoid(jnp.asarray(z)), true)
    assert_ulps(-log_softmax(pairs)[:, 0], oracles.softplus(z))


@given(arrays(np.float32, 50, elements=st.floats(-200, 200, width=32)))
def test_links_are_monotone_to_rounding(z: np.ndarray) -> None:
    z = np.sort(z)
    for link in SCALAR_LINKS.values():
        for low, high in pairwise(np.asarray(link(jnp.asarray(z))).astype(np.float64)):
            assert high >= low - 16 * np.finfo(np.float32).eps * abs(low)


@given(moderate)
def test_logsumexp_lies_between_max_and_max_plus_log_k(logits: np.ndarray) -> None:
    value, largest = np.asarray(logsumexp(logits), np.float64), logits.max(-1).astype(np.float64)
    room = 8 * np.spacing(np.float32(np.abs(largest) + 2))
    assert (value >= largest - room).all()
    assert (value <= largest + np.log(SHAPE[-1]) + room).all()


@pytest.mark.parametrize("behind", [None, 0.6, 3.3], ids=["one", "two", "one and a second"])
@pytest.mark.parametrize("classes", [75, 129, 499, 500, 1000, 1500, 4096, 32768])
def test_leaders_among_ties_in_a_large_array(classes: int, behind: float | None) -> None:
    """Where vectorised sums serve, whole or in blocks: each addition may round the same way."""
    distances = np.linspace(11, 17.5, max(17, 2**17 // classes), dtype=np.float32)
    logits = np.repeat(-distances[:, None], classes, 1)
    logits[:, 0] = 0
    if behind is not None:
        logits[:, 32] = -behind
    assert logits.size > exponential.SEQUENTIAL_SUM_LIMIT
    total, largest = oracles.logsumexp(logits)
    found = jax.jit(all_row_links, static_argnames="axis")(logits, None, None, axis=-1)
    assert_ulps(found["softmax"], oracles.softmax(logits))
    assert_ulps(found["log_softmax"], oracles.log_softmax(logits))
    assert_ulps(found["logsumexp"], total, scale=largest)
