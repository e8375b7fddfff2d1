"""A client of a federation that knows Refold by docs/WIRE.md and docs/vectors/types.json alone.

Nothing of `refold` is used here but the bus, as transport: it stands for clients in other languages. What it cannot do from the
page alone, the page lacks. It is short rather than fast.
"""
