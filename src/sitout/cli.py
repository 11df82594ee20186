"""The command line: every command is one call into the package."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from . import __version__, _audit, _checks
from ._audit._scan import python_files
from ._doctor import DoctorError
from ._doctor import doctor as run_doctor
from ._factory import FactoryError, model_of
from ._optional import needs_or_exit
from ._replay import ReplayError
from ._replay import replay as run_replay
from ._study import ARMS, Study, StudyError
from ._study import study as run_study

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    help="Dropout in which a unit that sits out costs nothing.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class AuditError(ValueError):
    """An audit cannot run as asked: one line that says why, and the way out."""


@contextmanager
def _one_line(command: str, debug: bool) -> Iterator[None]:
    """Turn what the user can mend into one line on standard error and exit code 2."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(str(stopped) or "Stopped.", err=True)
        raise typer.Exit(130) from stopped
    except (StudyError, ReplayError, DoctorError, FactoryError, AuditError) as error:
        if debug:
            raise
        typer.echo(f"sitout {command}: {error}", err=True)
        raise typer.Exit(2) from error


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sitout {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Dropout in which a unit that sits out costs nothing."""


Data = Annotated[
    str,
    typer.Argument(
        help="digits, breast_cancer, wine, diabetes; mnist, fashion-mnist; a .csv, .tsv, .parquet "
        "or .npz file."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def study(
    data: Data,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification or regression; inferred if not given.")
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Comma-separated; thinned and thinned+max-norm are there too.")
    ] = ",".join(ARMS),
    repeats: Annotated[int, typer.Option(help="Paired repeats, at least 8.")] = 8,
    budget: Annotated[str, typer.Option(help="Wall time to plan for: 90s, 10m, 1h30m.")] = "10m",
    jobs: Annotated[
        int | None, typer.Option(help="Networks trained side by side; all cores if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; sitout-study-DATA if not given.")
    ] = None,
    net: Annotated[
        str, typer.Option(help="mlp:WIDTHxLAYERS, or package.module:factory.")
    ] = "mlp:1024x2",
    train_size: Annotated[
        int | None, typer.Option(help="Train on a stratified subset of so many rows.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of mnist and fashion-mnist.", envvar="SITOUT_DATA")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Settings per arm that tuning tries; the budget decides if not given."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="At most so many; the budget decides if not given.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step; 32 below 2,000 training rows, else 128.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "sgd",
    seed: Annotated[int, typer.Option(help="Of splits, weights, batches and masks.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Measure whether dropout helps a network on your data, beside the other regularizers.

    The same command again resumes a study that was stopped.
    """
    with needs_or_exit("study", "sitout study"), _one_line("study", debug):
        from ._watch import watch

        with watch(sys.stderr) as watching:
            found = run_study(
                data,
                target=target,
                task=task,
                arms=[arm.strip() for arm in arms.split(",") if arm.strip()],
                repeats=repeats,
                budget=budget,
                jobs=_cores() if jobs is None else jobs,
                out=out,
                network=net,
                train_size=train_size,
                data_dir=data_dir,
                trials=trials,
                epochs=epochs,
                batch_size=batch_size,
                optimizer=optimizer,
                seed=seed,
                say=watching.say,
                report=watching.report,
            )
    if json:
        typer.echo(found.to_json())
    else:
        _print(found)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _print(found: Study) -> None:
    """Print a finished study: a table on a terminal, plain lines elsewhere."""
    from ._report import plain, table

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(table(found))
    else:
        typer.echo(plain(found))
    folder = Path(found.out)
    typer.echo(f"\n{found.verdict}\n{found.verdict_best_other}\n")
    typer.echo(f"Report: {folder / 'report.html'}")
    typer.echo(f"Trained network: {folder / 'best'}{os.sep}  ({found.best})")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished study.")],
    rows: Annotated[str, typer.Argument(help="A .csv, .tsv, .parquet or .npz file of new rows.")],
    samples: Annotated[
        int | None, typer.Option(help="Leave dropout on and predict so many times.")
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="Whose network; that of lowest validation loss if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write here, as .csv, .parquet or .npz, instead of printing CSV."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Predict new rows with a network that a study trained; CSV goes to standard output."""
    with needs_or_exit("study", "sitout predict"):
        from ._study.predict import predict as run_predict
        from ._study.sampled import check_ending, write

    def say(line: str) -> None:
        typer.echo(f"sitout predict: {line}", err=True)

    with _one_line("predict", debug):
        if out is not None:
            check_ending(out)
        found = run_predict(folder, rows, arm=arm, samples=samples, seed=seed, say=say)
        if out is None:
            typer.echo(found.to_csv(index=False), nl=False)
        else:
            write(found, out)


@app.command()
def replay(
    state: Annotated[
        Path, typer.Argument(help="What torch.save wrote: clock.state_dict(), alone or in a dict.")
    ],
    site: Annotated[
        str, typer.Option(help="Name of the layer in the model; or its number, if no name fits.")
    ],
    step: Annotated[int, typer.Option(help="The optimizer step.")],
    shape: Annotated[str, typer.Option(help="Of the layer's input: 32,128.")],
    p: Annotated[float, typer.Option("--p", help="Its drop rate then.")],
    call: Annotated[int, typer.Option(help="How many times it had run before in the step.")] = 0,
    rows: Annotated[
        str | None, typer.Option(help="Positions in the batch: 8:16, or 3,5,9; all if not given.")
    ] = None,
    shared_dims: Annotated[
        str, typer.Option(help="Dims along which one bit serves all: 2,3 for Dropout2d.")
    ] = "",
    batch_dim: Annotated[int, typer.Option(help="Dim of the samples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Print which units of a layer sat out at a past step under a MaskClock."""
    with _one_line("replay", debug):
        found = run_replay(
            state,
            site,
            step,
            _ints(shape, "--shape"),
            p,
            call=call,
            rows=None if rows is None else _positions(rows),
            shared_dims=_ints(shared_dims, "--shared-dims"),
            batch_dim=batch_dim,
        )
    if json:
        typer.echo(found.to_json())
    else:
        for line in found.lines():
            typer.echo(line)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what serves dropout on this machine, test it against the reference, and time it."""
    with _one_line("doctor", debug):
        found = run_doctor()
    typer.echo(found.to_json() if json else found.text())
    if not found.core.targets:
        typer.echo(f"sitout doctor: {found.core.why}", err=True)
    if found.wrong:
        typer.echo("sitout doctor: the core differs from the reference.", err=True)
        raise typer.Exit(1)


@app.command()
def audit(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="Files and folders of source, which is read and not run; or one "
            "package.module:factory that returns a model, or a model and its inputs.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Shape of an input of the model: 2,3,224,224. Repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Look for mistakes with dropout in source code, or in a model."""
    with _one_line("audit", debug):
        found = _audit_of(targets, inputs or [])
    typer.echo(found.to_json() if json else str(found))
    if found.errors:
        raise typer.Exit(1)


def _audit_of(targets: list[str], inputs: list[str]) -> _audit.Audit:
    strays = [target for target in targets if not Path(target).exists()]
    if not strays:
        if inputs:
            raise AuditError(
                f"--input goes with package.module:factory. Got {targets[0]!r}, which is source."
            )
        return _audit_of_source(targets)
    if any(not all(target.partition(":")) for target in strays):
        rule = "a file, a folder, or package.module:factory"
        raise AuditError(
            _checks.message("What to audit", rule, strays[0], "There is no such path.")
        )
    if len(targets) > 1:
        raise AuditError("One package.module:factory is audited at a time, and without paths.")
    return _audit_of_model(strays[0], [_shape(one) for one in inputs])


def _audit_of_source(paths: list[str]) -> _audit.Audit:
    if not python_files(paths):
        typer.echo(f"sitout audit: there is no .py file in {', '.join(paths)}.", err=True)
    try:
        return _audit.scan(paths)
    except OSError as error:
        raise AuditError(f"Cannot read {error.filename}: {error.strerror}.") from error


def _audit_of_model(target: str, shapes: list[list[int]]) -> _audit.Audit:
    model, args, kwargs = model_of(target, shapes)
    if not args and not kwargs:
        typer.echo(
            "sitout audit: without inputs only the rules that need no forward are applied. Give "
            "--input 2,3,224,224, or return (model, inputs) from the factory.",
            err=True,
        )
    try:
        return _audit.audit(model, *args, **kwargs)
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise AuditError(
            f"The model of {target!r} must run on its inputs. It raised "
            f"{type(error).__name__}: {line}"
        ) from error


def _shape(text: str) -> list[int]:
    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = [-1]
    if min(shape) < 0:
        raise AuditError(_checks.message("--input", "a shape such as 2,3,224,224", text))
    return shape


def _ints(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ReplayError(f"{option} must be ints with commas between. Got {text!r}.") from None


def _positions(text: str) -> torch.Tensor:
    start, colon, stop = text.partition(":")
    ends = _ints(start, "--rows") + _ints(stop, "--rows")
    try:
        if colon and len(ends) == 2 and ends[0] < ends[1]:
            return torch.arange(*ends)
        if not colon and ends:
            return torch.tensor(ends)
    except (RuntimeError, OverflowError):
        pass
    raise ReplayError(f"--rows must be like 8:16 or 3,5,9. Got {text!r}.")
