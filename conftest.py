"""Settings for every pytest run of the course, tests/ and notebooks/ alike.

This lies at the root because pytest reads it for `pytest --nbval notebooks/` only here.
"""

import re

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("nbval"):  # the unit tests go without, for a fast start
        correct_nbval()


def correct_nbval() -> None:
    from nbval.kernel import RunningKernel
    from nbval.plugin import IPyNbCell

    def execute_cell_input(self, cell_input, allow_stdin=None):
        # nbval runs cells without history. IPython then forgets that a trailing ";"
        # hides a cell's value, and `plt.plot(x);` fails against a correct notebook.
        # With history it behaves as in JupyterLab.
        return self.kc.execute(
            cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
        )

    RunningKernel.execute_cell_input = execute_cell_input
    run_cell = IPyNbCell.runtest

    def runtest(self):
        # nbval interrupts a cell that takes too long. Training answers Ctrl-C by
        # keeping what it has learned, so such a cell would pass, and nbval excuses all
        # that follow it.
        run_cell(self)
        if self.parent.timed_out:
            self.raise_cell_error("The cell took too long and caught the interrupt.")

    IPyNbCell.runtest = runtest

    # A claim says what it measured, which differs a little between processors; that it
    # lies in its band is the claim's own business.
    measured = re.compile(r"(?<= Measured: ).*")
    sanitize = IPyNbCell.sanitize
    IPyNbCell.sanitize = lambda self, text: measured.sub("...", sanitize(self, text))
