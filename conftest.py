"""Settings for every pytest run of the course, tests/ and notebooks/ alike.

This lies at the root because pytest reads it for `pytest --nbval notebooks/` only here.
"""

try:
    from nbval.kernel import RunningKernel
except ImportError:  # the unit tests need no nbval
    pass
else:

    def execute_cell_input(self, cell_input, allow_stdin=None):
        # nbval runs cells without history. IPython then forgets that a trailing ";"
        # hides a cell's value, and `plt.plot(x);` fails against a correct notebook.
        # With history it behaves as in JupyterLab.
        return self.kc.execute(
            cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False
        )

    RunningKernel.execute_cell_input = execute_cell_input
