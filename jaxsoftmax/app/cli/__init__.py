"""The command line: its commands, their options, what they show, and the tables they write."""
