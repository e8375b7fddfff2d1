"""A fuzzer of everything that takes bytes or words from outside: ``python -m tests.fuzz --help``.

`table` lists the decoders; `engine` makes inputs from valid ones and judges what comes of each; ``corpus/`` keeps what was
found.
"""
