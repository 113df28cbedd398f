"""The command `compare`: several runs side by side, as tables and as a page."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from jaxsoftmax.app import atomic_files, comparison, evaluation
from jaxsoftmax.app.cli import console, tables
from jaxsoftmax.app.cli import output as results
from jaxsoftmax.app.comparison import ComparedRun
from jaxsoftmax.app.text import format_setting, replace_unprintable


def run(*, runs: list[Path], output: Path | None, overwrite: bool, quiet: bool) -> None:
    """Run the command with its options, which `app` declares."""
    screen = console.make_console(quiet=quiet)
    if output is not None:
        atomic_files.check_output(output, suffixes=[".html"], overwrite=overwrite)
    compared = comparison.load(runs)
    for note in comparison.notes(compared):
        screen.print(replace_unprintable(note))
    for table in _tables(compared):
        screen.print(table)
    results.add(**comparison.to_json(compared))
    if output is not None:
        from jaxsoftmax.app.report import comparison_page  # matplotlib takes time to import

        atomic_files.write(output, lambda partial: comparison_page.write(partial, compared))
        results.write(str(output) if quiet else f"page: {output}", page=output)


def _tables(runs: Sequence[ComparedRun]) -> Iterator[Table]:
    """Yield the test metrics, * at the best, and the settings that differ."""
    names = comparison.shared_metrics(runs)
    metrics = tables.make_table("", *(evaluation.TITLES[name] for name in names))
    bests = {name: comparison.best(runs, name) for name in names}
    for one in runs:
        cells = (
            evaluation.format_metric(name, one.test.get(name))
            + (" *" if one.name in bests[name] else "  ")
            for name in names
        )
        metrics.add_row(replace_unprintable(one.name), *cells)
    yield metrics
    settings = comparison.differing_settings(runs)
    if settings:
        yield _settings_table(runs, settings)


def _settings_table(runs: Sequence[ComparedRun], settings: dict[str, list]) -> Table:
    """Return a row for each setting: runs may differ in more settings than fit into a line."""
    table = tables.make_table("", *(replace_unprintable(one.name) for one in runs))
    for name, values in settings.items():
        cells = ("–" if value is None else format_setting(value) for value in values)
        table.add_row(name.replace("_", " "), *map(replace_unprintable, cells))
    return table
