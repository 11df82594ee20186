from dataclasses import replace

import pytest
from rich.console import Console

from sitout._report import plain, table


def written(shown, width):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def expected(arm):
    cells = [f"{100 * arm.test_error.mean:.2f} %", f"{100 * arm.train_error.mean:.2f} %"]
    cells.append(f"{100 * arm.gap.mean:.2f}")
    if arm.versus_none:
        versus = arm.versus_none
        effect = f"{100 * versus.mean:+.2f} [{100 * versus.low:.2f}, {100 * versus.high:.2f}]"
        cells += [effect, f"{versus.p_holm:.3f}"]
    return cells


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_holds_the_numbers_of_the_study_in_80_columns(study, width):
    lines = written(table(study), width).splitlines()
    assert max(map(len, lines)) <= width
    for arm in study.arms:
        (line,) = [line for line in lines if line.split()[:1] == [arm.name]]
        assert all(cell in line for cell in expected(arm))


def test_plain_lines_say_the_same_as_the_table(study):
    rows = [line.split() for line in written(table(study), 100).splitlines()]
    for line in plain(study).splitlines()[1:]:
        assert line.split() in rows


def test_plain_lines_are_aligned_ascii(study):
    lines = plain(study).splitlines()
    assert plain(study).isascii()
    assert len({len(line) for line in lines if line.endswith(("0", "1", "p"))}) == 1


def test_a_table_of_regression_fits_80_columns(make_regression):
    study = make_regression(unit="units of a target with quite a long name")
    lines = written(table(study), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("0.00184" in line for line in lines) or "0.00164" in plain(study)
    assert "%" not in plain(study).replace("95 %", "")


def test_one_arm_is_a_table_without_differences(make_study):
    study = make_study(("none",))
    assert plain(study).splitlines()[1].split() == [
        "none",
        *" ".join(expected(study.arms[0])).split(),
    ]


def test_user_text_is_no_markup(make_regression):
    study = replace(make_regression(), unit="[red]x[/]")
    assert "[red]x[/]" in written(table(study), 80)
