"""What the tests counted and measured, for the end of the run: also from the processes of xdist."""

COUNTED = ('kill points tried', 'failures injected', 'signals', 'harmed')
FIGURE = 'figure'


def pytest_terminal_summary(terminalreporter):
    found = [pair for kind in ('passed', 'failed') for report in terminalreporter.getreports(kind)
             if report.when == 'call' for pair in report.user_properties]
    lines = [text for name, text in found if name == FIGURE]
    if any(name in COUNTED for name, _ in found):
        lines.insert(0, ', '.join('%s: %d' % (counted, sum(
            number for name, number in found if name == counted)) for counted in COUNTED))
    if lines:
        terminalreporter.section('figures')
        for line in lines:
            terminalreporter.write_line(line)
