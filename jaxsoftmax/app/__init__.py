"""The application: what the command line does with data, runs and reports.

Nothing outside this package imports from it, and `import jaxsoftmax` loads none of it.
"""
