"""The parts of benchmark.py, one question each: what a device does with this library's functions.

A part returns its steps, the most telling first. A step is one entry of the record: its title, and
a function that measures it. In an entry, `seconds` are those of one call, `ratios` are the seconds
of the first program, this library's, over those of each, `operations` and `bytes` are what the
definition needs at least, and `temporary_bytes` are XLA's count of what a program needs besides its
arguments and results.
"""
