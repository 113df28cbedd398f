"""The application behind the command line: data sets, fits, run folders, plots and reports.

Nothing outside this package imports from it, and `import jaxsoftmax` loads none of it.
"""
