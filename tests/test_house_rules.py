"""The rules of the house, as tests: signatures, vocabulary, imports, what is refused on sight."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jaxsoftmax

PACKAGE = Path(jaxsoftmax.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = {name: getattr(jaxsoftmax, name) for name in jaxsoftmax.__all__}
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(inspect.unwrap(f))}

# Lower imports nothing from higher; modules of one rank do not import each other.
RANKS = {
    "placement": -1,
    "sharding": 2,
    "exponential": 0,
    "few_passes": 2,
    "fixed_point": 2,
    "host_arrays": 0,
    "linear_map": 0,
    "linear_params": 0,
    "validation": 1,
    "calls": 2,
    "sources": 3,
    "integer_reductions": 1,
    "class_maxima": 2,
    "class_shards": 3,
    "sampling": 4,
    "sharded_softmax": 4,
    "links": 5,
    "softmax_core": 6,
    "sharded_losses": 7,
    "derivatives": 8,
    "losses": 8,
    "kernels": 9,
    "linear": 10,
    "training": 11,
    "solvers": 11,
    "estimator": 12,
}
# What a user of the core never pays for.
EXTRAS = ("tensorflow_datasets", "tensorflow", "sklearn", "matplotlib", "rich", "typer",
          "safetensors", "pandas", "pyarrow", "jinja2", "torch", "absl.testing",
          "scipy.optimize")  # fmt: skip

# One word for each idea (left); the words other libraries have for it are not ours.
VOCABULARY = {
    "logits": {"logit", "scores", "preds", "predictions", "output", "outputs", "y_pred", "inputs"},
    "labels": {"label", "classes_true", "y", "y_true", "target", "ground_truth", "integer_labels"},
    "targets": {"soft_labels", "target_probabilities", "probs", "distribution"},
    "where": {"mask", "class_mask", "ignore_mask"},
    "valid": {"ignore_index", "keep", "valid_mask", "padding_mask", "is_valid"},
    "weights": {"weight", "sample_weight", "sample_weights", "example_weights"},
    "w": {"kernel", "weight_matrix", "coef", "W"},
    "bias": {"b", "intercept", "use_bias"},
    "axis": {"dim", "axes", "class_axis"},
    "key": {"rng", "seed", "prng_key", "rng_key", "random_state"},
}
FORBIDDEN = {other: word for word, others in VOCABULARY.items() for other in others}


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS.keys())
def function(request: pytest.FixtureRequest) -> Callable:
    return request.param


def test_there_is_something_to_check() -> None:
    assert {"softmax", "cross_entropy", "weighted_mean", "gauss_newton_factor"} <= set(FUNCTIONS)
    assert len(MODULES) > 5


def test_all_is_complete_and_in_order() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    homes = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    public = [name for name in homes if not name.startswith("_")]
    for name in public:  # what is loaded at the first use is what a type checker sees
        assert getattr(jaxsoftmax, name) is getattr(importlib.import_module(homes[name]), name)
    assert len(set(jaxsoftmax.__all__)) == len(jaxsoftmax.__all__)
    missing = {"__version__"} & set(jaxsoftmax.__all__)
    assert set(jaxsoftmax.__all__) - missing == set(public)


def test_at_most_three_positional_then_keywords(function: Callable) -> None:
    parameters = inspect.signature(function).parameters.values()
    kinds = [p.kind for p in parameters]
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    assert sum(kind == inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds) <= 3
    # A source of examples has targets of its own.
    optional = [
        p for p in parameters if p.default is not inspect.Parameter.empty and p.name != "targets"
    ]
    assert all(p.kind == inspect.Parameter.KEYWORD_ONLY for p in optional), "options are keywords"


def test_one_vocabulary(function: Callable) -> None:
    names = set(inspect.signature(function).parameters)
    assert "reduction" not in names
    wrong = {name: FORBIDDEN[name] for name in names if name in FORBIDDEN}
    assert not wrong, f"say it in the house's words: {wrong}"


def test_annotations_and_docstring(function: Callable) -> None:
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
    assert signature.return_annotation is not inspect.Signature.empty
    text = inspect.getdoc(function) or ""
    assert len(text.splitlines()[0]) <= 100
    assert text.splitlines()[0].endswith(".")
    assert ">>> " in text, "the docstring has no example"


# What is public beside the names of the package itself.
NAMESPACES = ("metrics", "calibration", "training", "estimator")
SECTIONS = ("Args:", "Returns:", "Numerics:", "Raises:", "Example:", "Reference:")
EXEMPT = {("weight_decay_mask", "Raises:")}  # it takes anything


def public_functions() -> Iterator[tuple[str, Callable, tuple[str, ...]]]:
    """Every public function with the sections of its docstring."""
    for name, function in FUNCTIONS.items():
        yield name, function, (*SECTIONS, "Derivatives:")
    for space in NAMESPACES:
        module = importlib.import_module(f"jaxsoftmax.{space}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(inspect.unwrap(value)) and name not in FUNCTIONS:
                yield f"{space}.{name}", value, SECTIONS


def missing_parts(
    function: Callable, sections: tuple[str, ...], *, shapes: bool = True
) -> list[str]:
    """The sections, arguments and shapes that the docstring of a function lacks."""
    text, name = inspect.getdoc(function) or "", function.__name__
    patterns = {part: f"^{part}$" for part in sections if (name, part) not in EXEMPT}
    arguments = set(inspect.signature(function).parameters) - {"self"}
    patterns |= {a: rf"^ +\**{a}( \([^)]*\))?:" for a in arguments}
    lacking = [part for part, line in patterns.items() if not re.search(line, text, re.MULTILINE)]
    pattern = r"`\[[^`]*\]`|: \[[A-Z]|any (dtype and )?shape|any pytree|-> \w+\["
    if shapes and not re.search(pattern, text):
        lacking.append("shapes such as `[..., K]`")
    return lacking


def test_docstrings_are_the_specification() -> None:
    found = {name: missing_parts(f, sections) for name, f, sections in public_functions()}
    assert len(found) > 60
    assert not {name: parts for name, parts in found.items() if parts}


def functions_of(space: str) -> dict[str, Callable]:
    """The functions that a module of the application lists in `__all__`, or else defines."""
    module = importlib.import_module(f"jaxsoftmax.app.{space}")
    names = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
    found = {name: getattr(module, name) for name in names}
    mine = module.__name__
    return {n: f for n, f in found.items() if inspect.isfunction(f) and mine in f.__module__}


@pytest.mark.parametrize(
    "space", ["host_metrics", "host_calibration", "ranking_curves", "evaluation", "plots"]
)
def test_docstrings_of_the_application_state_the_extremes(space: str) -> None:
    lacking = {}
    for name, function in functions_of(space).items():
        sections = ["Args:", "Returns:|Yields:", "Example:"]
        sections += ["Numerics:"] if "ndarray" in str(inspect.signature(function)) else []
        sections += (
            ["Raises:"] if re.search(r"^ +raise ", inspect.getsource(function), re.M) else []
        )
        sections = [f"(?:{part})" for part in sections]
        lacking[name] = missing_parts(function, tuple(sections), shapes=False)
    assert lacking
    assert not {name: parts for name, parts in lacking.items() if parts}


def public_classes() -> Iterator[type]:
    for space in ("", *(f".{name}" for name in (*NAMESPACES, "solvers"))):
        module = importlib.import_module(f"jaxsoftmax{space}")
        yield from (v for name in module.__all__ if inspect.isclass(v := getattr(module, name)))


def lacking_fields(cls: type) -> list[str]:
    fields = getattr(cls, "__dataclass_fields__", None) or getattr(cls, "_fields", ())
    text = inspect.getdoc(cls) or ""
    return [name for name in fields if f"`{name}" not in text and f"{name}:" not in text]


def estimator_methods(cls: type) -> dict[str, Callable]:
    methods = inspect.getmembers(cls, inspect.isfunction)
    mine = "jaxsoftmax.estimator"
    return {n: m for n, m in methods if n[0] != "_" and m.__module__.startswith(mine)}


def test_classes_say_what_they_hold() -> None:
    """Each field has its line, and each method says what it takes, returns and raises."""
    lacking = {cls.__name__: lacking_fields(cls) for cls in public_classes()}
    for cls in public_classes():
        for name, method in estimator_methods(cls).items():
            lacking[name] = missing_parts(method, ("Returns:", "Raises:"), shapes=False)
    assert {"TrainState", "decision_function"} <= set(lacking)
    assert not {name: parts for name, parts in lacking.items() if parts}


# -- Imports --


def top(module: str) -> str:
    """The first part of a module's name inside the package, "" for the package itself."""
    return module.partition(".")[0]


def internal_imports(path: Path) -> Iterator[str]:
    """What of the package the module at `path` imports, at any depth of its code."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            stem = ".".join(("jaxsoftmax", *filter(None, base)))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("jaxsoftmax.") for name in names if "jaxsoftmax." in name)


def module_names() -> set[str]:
    return {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_order(path: Path) -> None:
    mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
    known = module_names()
    for name in internal_imports(path):
        theirs = top(name)
        if theirs not in known or theirs == mine:
            continue
        if mine in RANKS:
            assert theirs in RANKS, f"{mine} imports {theirs}, which has no rank"
            assert RANKS[theirs] < RANKS[mine], f"{mine} imports {theirs}: the order is {RANKS}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_outside_app_imports_from_it(path: Path) -> None:
    mine = path.relative_to(PACKAGE).parts[0]
    if mine not in ("app", "__main__.py"):  # __main__ is the command line's entry
        assert "app" not in map(top, internal_imports(path))


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_lean_import() -> None:
    # JAX brings scipy's linear algebra; what counts is what the package adds to its own needs.
    assert "jax" not in loaded_by("import jaxsoftmax")
    mine = loaded_by("import jaxsoftmax as js; js.softmax, js.metrics.f1, js.calibration.Fit")
    needed = loaded_by("import jax, optax, chex, numpy")
    assert {"jax", "optax", "chex", "jaxsoftmax"} <= mine
    extra = {name for name in mine - needed if name.startswith(EXTRAS)}
    assert not extra, f"jaxsoftmax loads {sorted(extra)}"
    heavy = {
        "tensorflow_datasets",
        "sklearn",
        "matplotlib",
        "rich",
        "typer",
        "safetensors",
        "torch",
    }
    assert not heavy & mine
    assert not {name for name in mine if name.startswith("jaxsoftmax.app")}


def test_import_leaves_jax_alone() -> None:
    code = (
        "import jax; before = dict(jax.config.values); from jaxsoftmax import softmax;"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized();"
        "changed = {k for k, v in jax.config.values.items() if before.get(k) != v};"
        "assert not changed, changed"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- Names and English --

# What was renamed to the field's terms, and idioms of another language, stay away.
RETIRED = {
    "Moved": "ModelTangents",
    "Change": "RowTangents",
    "Wanted": "NeedsGrad",
    "Rows": "LSEParts",
    "Judgement": "EvaluationResult",
    "truth": "labels or targets",
    "held": "valid",
    "hot": "is_label",
    "bend": "directional_curvature",
    "joined": "join",
    "widened": "widen",
}
IDIOMS = (
    r"\banew\b|\bas (it|they) lies?\b|\bcomes? to be\b|\bhas no say\b|\bsilences\b|\bparted by\b"
    r"|\bof the kind that\b|\bso many (classes|rows|bytes)\b|\bgo(es)? on\b|^ *\"{3}What "
)


def defined_names(path: Path) -> Iterator[str]:
    """The names that a module gives to functions, classes, arguments and variables."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_are_the_fields(path: Path) -> None:
    old = {name: RETIRED[name] for name in defined_names(path) if name in RETIRED}
    assert not old, f"{path.name} uses names that have another: {old}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_english_is_plain(path: Path) -> None:
    found = re.search(IDIOMS, path.read_text(), re.MULTILINE)
    assert not found, f"{path.name} has {found.group() if found else None!r}"


def test_a_public_name_means_one_thing() -> None:
    """No other module defines a function with the name of one that the package exports."""
    for path in MODULES:
        if "cli" in path.parts:  # its functions are named after the commands
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
                home = inspect.getsourcefile(inspect.unwrap(FUNCTIONS[node.name]))
                assert str(path) == home, f"{path.name} has another {node.name}"


# -- Refused on sight --


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source_has_nothing_refused(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    assert not re.search(r"_v\d+$", path.stem)
    text = path.read_text()
    for pattern in (
        r"except ImportError:\s*pass",
        r"\bsafe_\w+\(",
        r"def \w+_v\d\b",
        r"\breduction\s*=",
        r"config\.update\(",
        r"jax\.config\.jax_",
        r"\bTODO\b|\bFIXME\b|\bXXX\b",
        r"NotImplementedError\(\)",
    ):
        found = re.search(pattern, text)
        assert not found, f"{path.name} has {found.group() if found else None!r}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_tests_have_nothing_refused(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert not name.endswith("assertTrue"), f"{path.name}:{node.lineno} {name}"
            for keyword in node.keywords:
                if keyword.arg in ("rtol", "atol") and isinstance(keyword.value, ast.Constant):
                    # 1e-2 or more needs an argument, which is then not a bare number.
                    assert keyword.value.value < 1e-2, f"{path.name}:{node.lineno} {keyword.arg}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} has no docstring"


# -- Two commands --


def test_readme_has_the_command_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md"), (ROOT / ".ci" / "run")
    if not readme.exists() or not ci.exists():
        pytest.skip("an installed package has neither beside it")
    install = 'python3 -m venv .venv && .venv/bin/python -m pip install -q -e ".[{}]" && .venv/bin/'
    lines = readme.read_text().splitlines()
    assert install.format("cli") + "jaxsoftmax fit digits" in lines
    assert install.format("test") + "python -m pytest -n 2" in lines
    assert 'pip install -q -e ".[test]"' in ci.read_text()
    assert "-m pytest -n 2" in ci.read_text()
