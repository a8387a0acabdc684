import math

from saiopt.analysis.gsnr_rows import (
    GSNRRow,
    gsnr_summary,
    gsnr_table,
    ratio_courses,
)


def test_the_table_shows_the_first_and_the_last_measurement() -> None:
    rows = [
        GSNRRow("w", 10_000, step, 100.0 + step, 0.25, 0.01 if step < 9 else math.nan)
        for step in (0, 5, 50)
    ]
    heading, line = gsnr_table(rows).splitlines()
    assert line.split()[:6] == ["w", "10,000", "100.0", "100.0", "1.000", "1.500"]
    assert line.split()[6:] == ["25%", "25%", "1e-02", "-"]
    assert len(heading) == len(line)


def test_a_narrow_table_puts_numbers_under_names_and_cuts_none() -> None:
    rows = [GSNRRow("a.block.of.a.long.name", 10_000, s, 100.0 + s) for s in (0, 5)]
    wide, narrow = (gsnr_table(rows, width).splitlines() for width in (200, 40))
    assert narrow[::2] == ["block", "a.block.of.a.long.name"]
    assert narrow[3].split() == wide[1].split()[1 : 1 + len(narrow[3].split())]
    assert max(map(len, narrow)) <= 40


def test_the_summary_of_nothing_finite_says_so() -> None:
    assert "no gradient was finite" in gsnr_summary([GSNRRow("w", 4, 0, math.nan)])


def test_the_summary_names_the_block_farthest_above_the_square_root() -> None:
    rows = [
        GSNRRow(block, 100, step, 10.0 * ratio)
        for block, step, ratio in [("a", 0, 1.0), ("b", 7, 3.0), ("a", 9, 1.2)]
    ]
    rows.append(GSNRRow("c", 100, 0, math.nan))
    expected = "g-SNR/√n: median 1.200, largest 3.000 (b, step 7)"
    assert gsnr_summary(rows) == expected


def test_a_course_is_the_ratios_of_one_block_in_the_order_of_its_steps() -> None:
    rows = [
        GSNRRow(block, numel, step, 6.0 + step)
        for step in (0, 3)
        for block, numel in [("w", 9), ("v", 4)]
    ]
    assert ratio_courses(rows) == {"w": [(0, 2.0), (3, 3.0)], "v": [(0, 3.0), (3, 4.5)]}


def test_a_block_of_one_entry_has_no_course() -> None:
    rows = [GSNRRow("w", 4, 0, 2.0), GSNRRow("temperature", 1, 0, 1.0)]
    assert ratio_courses(rows).keys() == {"w"}
