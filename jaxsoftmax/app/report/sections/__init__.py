"""The sections of the report of a run, each a function from its context to elements.

A section has no elements if the run has nothing for it.
"""
