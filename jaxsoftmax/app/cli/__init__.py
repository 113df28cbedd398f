"""The command line: its commands and options, their inputs and outputs, and Ctrl-C."""
